"""Released tensor names and the module paths they belong to: one table, read both ways.

A released `weight` of a dense layer is [out, in]; modules keep [in, out], hence `transposed`.
Embedding and head are [rows, width] on both sides. Blocks are stacked on a leading layer axis.
"""

from dataclasses import dataclass

from jaxllada.common.config.model import ModelConfig


@dataclass(frozen=True)
class Entry:
    """One tensor: released name (with `{layer}` to fill in for blocks) and module path."""

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
    `released_parts`.
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
