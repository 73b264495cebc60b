"""CPU reference of npu_fusion_attention in its BSND and BNSD layouts, after Huawei's document.

Raises ValueError for arguments that the document rules out, NotImplementedError for what it allows
and this backend does not use (pse, sink, packed sequences, the compressed masks).
"""

import torch

from tests.ascend_sim.npu_ops import FLOATS, default_generator, draw, kernel, mixed, require, vjp

MANY = 2147483647
HEADS_FIRST = {"BNSD": (0, 1, 2, 3), "BSND": (0, 2, 1, 3)}


def hidden_positions(mask, mode, pre, post, batch, heads, queries, keys):
    """Where a query may not look, or None. Without atten_mask the operator ignores sparse_mode."""
    if mask is None:
        return None
    shapes = [(batch, n, queries, keys) for n in (heads, 1)]
    shapes += [(1, 1, queries, keys), (queries, keys)]
    require(mask.shape in shapes, f"atten_mask {tuple(mask.shape)}, wanted one of {shapes}")
    distance = torch.arange(keys) - torch.arange(queries)[:, None]
    outside = (distance > post) | (distance < -pre)  # skipped in mode 0, whatever the mask says
    return mask.bool() | outside if mode == 0 else mask.bool()


def attend(
    q, k, v, heads, layout, mask, scale, keep_prob, pre, post, precise, mode, seed, offset
):  # fmt: skip
    """Output, softmax maximum, softmax sum."""
    if layout not in HEADS_FIRST or mode not in (0, 1):
        raise NotImplementedError(f"the simulator has no {layout} with sparse_mode {mode}")
    require(q.dtype == k.dtype == v.dtype and q.dtype in FLOATS, "one float type for q, k and v")
    require(0 < keep_prob <= 1, "keep_prob outside (0, 1]")
    require(mask is None or mask.dtype in (torch.bool, torch.uint8), "a bool mask (1 hides)")
    require(q.dim() == 4 and q.size(-1) <= 768, "four axes, at most 768 channels")
    q, k, v = (x.permute(HEADS_FIRST[layout]).float() for x in (q, k, v))
    require(q.size(1) == heads <= 256, "head_num is the number of query heads, at most 256")
    require(heads % k.size(1) == 0, "query heads are a multiple of key heads")
    k, v = (x.repeat_interleave(heads // k.size(1), 1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * scale
    sizes = (len(q), heads, q.size(2), k.size(2))
    hidden = hidden_positions(mask, mode, pre, post, *sizes)
    blind = torch.tensor(False) if hidden is None else hidden.all(-1, keepdim=True)
    undefined = "a query that sees no key is undefined unless inner_precise is 2"
    require(precise == 2 or not blind.any(), undefined)
    if hidden is not None:
        scores = scores.masked_fill(hidden, torch.finfo(torch.float32).min)
    top = scores.detach().amax(-1, keepdim=True)
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True)
    weights = (weights / total).masked_fill(blind, 0)
    if keep_prob < 1:
        generator = torch.Generator().manual_seed(mixed(seed, offset))
        kept = torch.rand(weights.shape, generator=generator) < keep_prob
        weights = weights * kept / keep_prob
    out = (weights @ v).permute(HEADS_FIRST[layout]).contiguous()
    return out, *(x.expand(-1, -1, -1, 8).contiguous() for x in (top, total))


def _only(**unused):
    if given := [name for name, value in unused.items() if value is not None]:
        raise NotImplementedError(f"the simulator has no {', '.join(given)}")


@kernel("npu_fusion_attention")
def fusion_attention(
    q, k, v, head_num, input_layout, pse=None, padding_mask=None, atten_mask=None, scale=1.0,
    keep_prob=1.0, pre=MANY, post=MANY, inner_precise=0, prefix=None, q_ends=None, kv_ends=None,
    sparse_mode=0, parallel=True, sync=False, softmax_layout="", sink=None, dropout_mask=None,
    seed=0, offset=0,
):  # fmt: skip
    _only(pse=pse, padding_mask=padding_mask, prefix=prefix, sink=sink, dropout_mask=dropout_mask)
    _only(actual_seq_qlen=q_ends, actual_seq_kvlen=kv_ends)
    if keep_prob < 1 and not seed:
        seed, offset = draw(default_generator())
    out, *statistics = attend(
        q, k, v, head_num, input_layout, atten_mask, scale, keep_prob, pre, post, inner_precise,
        sparse_mode, seed, offset,
    )  # fmt: skip
    return out.to(q.dtype), *statistics, q.new_empty(0), seed, offset, 0


@kernel("npu_fusion_attention_v3")
def fusion_attention_v3(*args, **kwargs):
    *tensors, seed, offset, _ = fusion_attention(*args, **kwargs)
    return (*tensors, torch.tensor(seed), torch.tensor(offset))


@kernel("npu_fusion_attention_grad", "npu_fusion_attention_grad_v3")
def fusion_attention_grad(
    q, k, v, dy, heads, layout, *, atten_mask=None, scale_value=1.0, keep_prob=1.0,
    pre_tockens=MANY, next_tockens=MANY, inner_precise=0, seed=0, offset=0, sparse_mode=0, **_,
):  # fmt: skip
    rest = (
        heads, layout, atten_mask, scale_value, keep_prob, pre_tockens, next_tockens,
        inner_precise, sparse_mode, int(seed or 0), int(offset or 0),
    )  # fmt: skip
    grads = vjp(lambda *qkv: attend(*qkv, *rest)[0].to(q.dtype), dy, q, k, v)
    return (*grads, q.new_empty(0), q.new_empty(0))
