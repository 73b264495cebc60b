"""Stored tensor names and the module paths they belong to: a table per family, read both ways.

A stored `weight` of a dense layer is [out, in]; modules keep [in, out], hence `transposed`.
Embedding and head are [rows, width] on both sides. Blocks are stacked on a leading layer axis.
"""

import dataclasses
from dataclasses import dataclass

from jaxllada.common.config.model import ModelConfig


@dataclass(frozen=True)
class Entry:
    """One tensor: stored name (with `{layer}` to fill in for blocks) and module path."""

    released: str
    path: tuple[str, ...]
    transposed: bool = False

    @property
    def per_layer(self) -> bool:
        """Whether every block has such a tensor."""
        return self.path[0] == "blocks"


_ROOT = "model.transformer."
_NORMS = ("attn_norm", "ff_norm")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "attn_out")
_MLP = ("ff_proj", "up_proj", "ff_out")


def llada_table(config: ModelConfig) -> tuple[Entry, ...]:
    """Returns every tensor a dense LLaDA checkpoint of this configuration holds.

    A sequential block stores q, k and v as one `att_proj`; those names come from
    `released_part`.
    """
    c = config
    block = _ROOT + _block_name(c)
    entries = [Entry(_ROOT + "wte.weight", ("wte",))]
    norm_leaves = _norm_leaves(c, c.layer_norm_with_affine)
    for name in _NORMS:
        entries += [Entry(f"{block}{name}.{leaf}", ("blocks", name, leaf)) for leaf in norm_leaves]
    if c.attention_layer_norm:
        for name in ("q_norm", "k_norm"):
            entries += [
                Entry(f"{block}{name}.{leaf}", ("blocks", "attention", name, leaf))
                for leaf in _norm_leaves(c, c.attention_layer_norm_with_affine)
            ]
    for name in _ATTENTION:
        biased = c.include_bias or (c.include_qkv_bias and name != "attn_out")
        entries += _dense(block + name, ("blocks", "attention", name), biased)
    for name in _MLP:
        if name != "up_proj" or c.block_type == "llama":
            entries += _dense(block + name, ("blocks", "mlp", name), c.include_bias)
    entries += [Entry(f"{_ROOT}ln_f.{leaf}", ("ln_f", leaf)) for leaf in norm_leaves]
    if not c.weight_tying:
        entries.append(Entry(_ROOT + "ff_out.weight", ("ff_out", "weight")))
        if c.include_bias:
            entries.append(Entry(_ROOT + "ff_out.bias", ("ff_out", "bias")))
    return tuple(entries)


# Module path (without its leaf) -> name in Hugging Face's Llama classes.
_LLAMA_NAMES: dict[tuple[str, ...], str] = {
    ("wte",): "model.embed_tokens",
    ("blocks", "attn_norm"): "model.layers.{layer}.input_layernorm",
    ("blocks", "ff_norm"): "model.layers.{layer}.post_attention_layernorm",
    ("blocks", "attention", "q_proj"): "model.layers.{layer}.self_attn.q_proj",
    ("blocks", "attention", "k_proj"): "model.layers.{layer}.self_attn.k_proj",
    ("blocks", "attention", "v_proj"): "model.layers.{layer}.self_attn.v_proj",
    ("blocks", "attention", "attn_out"): "model.layers.{layer}.self_attn.o_proj",
    ("blocks", "mlp", "ff_proj"): "model.layers.{layer}.mlp.gate_proj",
    ("blocks", "mlp", "up_proj"): "model.layers.{layer}.mlp.up_proj",
    ("blocks", "mlp", "ff_out"): "model.layers.{layer}.mlp.down_proj",
    ("ln_f",): "model.norm",
    ("ff_out",): "lm_head",
}


def llama_table(config: ModelConfig) -> tuple[Entry, ...]:
    """Returns the entries of `llada_table` under the names of Hugging Face's Llama classes.

    Only for configurations those classes can express (`common/config/llama.py`).
    """
    entries = []
    for entry in llada_table(config):
        module = entry.path if entry.path == ("wte",) else entry.path[:-1]
        leaf = "bias" if entry.path[-1] == "bias" else "weight"
        entries.append(dataclasses.replace(entry, released=f"{_LLAMA_NAMES[module]}.{leaf}"))
    return tuple(entries)


def entry_shape(config: ModelConfig, entry: Entry) -> tuple[int, ...]:
    """Shape of one layer of a tensor in its module: kernels [in, out], embedding [rows, width]."""
    c = config
    kv_width = c.kv_heads * c.head_dim
    inner = c.ffn_width // 2 if c.activation_type == "swiglu" else c.ffn_width
    matrices = {
        ("wte",): (c.rows, c.d_model),
        ("ff_out", "weight"): (c.rows, c.d_model),
        ("attention", "q_proj", "kernel"): (c.d_model, c.d_model),
        ("attention", "k_proj", "kernel"): (c.d_model, kv_width),
        ("attention", "v_proj", "kernel"): (c.d_model, kv_width),
        ("attention", "attn_out", "kernel"): (c.d_model, c.d_model),
        ("mlp", "ff_proj", "kernel"): (c.d_model, c.ffn_width),
        ("mlp", "up_proj", "kernel"): (c.d_model, c.ffn_width),
        ("mlp", "ff_out", "kernel"): (inner, c.d_model),
    }
    path = entry.path[1:] if entry.per_layer else entry.path
    if path in matrices:
        return matrices[path]
    if path == ("ff_out", "bias"):
        return (c.rows,)
    if path[-1] == "bias" and (*path[:-1], "kernel") in matrices:
        return matrices[*path[:-1], "kernel"][-1:]
    return (kv_width,) if path[-2] == "k_norm" else (c.d_model,)


@dataclass(frozen=True)
class Part:
    """Where one block's tensor lies: the stored name and, if fused, (first, last + 1) row."""

    name: str
    rows: tuple[int, int] | None = None


def released_part(config: ModelConfig, entry: Entry, layer: int = 0) -> Part:
    """Returns the stored tensor (and its rows, where several are fused) that fills `entry`."""
    c = config
    name = entry.released
    if entry.per_layer:
        group, member = divmod(layer, c.block_group_size)
        name = name.format(layer=layer, group=group, member=member)
    leaf = entry.path[-2] if len(entry.path) > 1 else ""
    if c.block_type != "sequential" or leaf not in ("q_proj", "k_proj", "v_proj"):
        return Part(name)
    width, kv_width = c.d_model, c.kv_heads * c.head_dim
    start = {"q_proj": 0, "k_proj": width, "v_proj": width + kv_width}[leaf]
    stop = start + (width if leaf == "q_proj" else kv_width)
    return Part(name.replace(leaf, "att_proj"), (start, stop))


def stored_names(config: ModelConfig) -> tuple[str, ...]:
    """Returns the tensor names of a checkpoint of this configuration, in layer order."""
    names: dict[str, None] = {}
    for entry in llada_table(config):
        for layer in range(config.n_layers if entry.per_layer else 1):
            names[released_part(config, entry, layer).name] = None
    return tuple(names)


def _block_name(config: ModelConfig) -> str:
    if config.block_group_size > 1:
        return "block_groups.{group}.{member}."
    return "blocks.{layer}."


def _norm_leaves(config: ModelConfig, affine: bool) -> tuple[str, ...]:
    if not affine:
        return ()
    return ("weight", "bias") if config.norm_bias else ("weight",)


def _dense(name: str, path: tuple[str, ...], biased: bool) -> list[Entry]:
    entries = [Entry(name + ".weight", (*path, "kernel"), transposed=True)]
    return [*entries, Entry(name + ".bias", (*path, "bias"))] if biased else entries
