"""The layouts a model folder can have: tensor names and config.json of a family, both ways.

A new family is a table of names (`names.py`), a pair of functions between its config.json and
`ModelConfig`, and a line in `LAYOUTS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxllada.common.config import llama, qwen2
from jaxllada.common.config.family import family_of
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.errors import UserError, nearest
from jaxllada.common.weights.names import (
    Entry,
    Part,
    entry_shape,
    llada_table,
    llama_table,
    released_part,
)

Path = tuple[str, ...]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a model folder: the rows of its parts, one after the other.

    A part is (entry of the module table, layer). Stored orientation is the transpose of the
    module's where the entry says `transposed`; `shape` is the stored one.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[tuple[Entry, int], ...]


@dataclass(frozen=True)
class Layout:
    """Names and config.json of one family.

    `read_config` and `write_config` map a config.json to `ModelConfig` and back; the second raises
    UserError for what this family cannot express. `stores_tied_head` tells whether a tied head is
    written as well. Tensors whose names contain one of `ignored` are no part of the language model.
    """

    name: str
    table: Callable[[ModelConfig], tuple[Entry, ...]]
    part_of: Callable[[ModelConfig, Entry, int], Part]
    read_config: Callable[[Mapping[str, Any]], ModelConfig]
    write_config: Callable[[ModelConfig], dict[str, Any]]
    embedding: str
    head: str
    stores_tied_head: Callable[[ModelConfig], bool] = lambda config: False
    ignored: tuple[str, ...] = ()

    def parts(self, config: ModelConfig) -> dict[tuple[Path, int], Part]:
        """Where each (module path, layer) is stored."""
        return {
            (entry.path, layer): self.part_of(config, entry, layer)
            for entry in self.table(config)
            for layer in range(config.n_layers if entry.per_layer else 1)
        }

    def tensors(self, config: ModelConfig) -> tuple[StoredTensor, ...]:
        """Every tensor of a folder of this configuration, layer by layer, head last."""
        parts: dict[str, list[tuple[Entry, int]]] = {}
        modules = llada_table(config)
        where = self.parts(config)
        for entry, layer in _by_layer(config, modules):
            parts.setdefault(where[entry.path, layer].name, []).append((entry, layer))
        if config.weight_tying and self.stores_tied_head(config):
            parts[self.head] = [(modules[0], 0)]
        return tuple(
            StoredTensor(name, _stored_shape(config, found), tuple(found))
            for name, found in parts.items()
        )

    def is_ignored(self, name: str) -> bool:
        """Whether a stored tensor belongs to something else than the language model."""
        return any(part in name for part in self.ignored)


def _by_layer(config: ModelConfig, entries: tuple[Entry, ...]) -> list[tuple[Entry, int]]:
    blocks = [e for e in entries if e.per_layer]
    first = [e for e in entries if e.path == ("wte",)]
    last = [e for e in entries if not e.per_layer and e.path != ("wte",)]
    layers = [(e, layer) for layer in range(config.n_layers) for e in blocks]
    return [(e, 0) for e in first] + layers + [(e, 0) for e in last]


def _stored_shape(config: ModelConfig, parts: list[tuple[Entry, int]]) -> tuple[int, ...]:
    shapes = [
        entry_shape(config, entry)[::-1] if entry.transposed else entry_shape(config, entry)
        for entry, _ in parts
    ]
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _llada_config(config: ModelConfig) -> dict[str, Any]:
    if config.is_causal:
        raise UserError("layout=llada cannot express an autoregressive model: use layout=qwen2")
    return config.to_dict()


def _llama_config(config: ModelConfig) -> dict[str, Any]:
    if config.is_causal:
        raise UserError("layout=llama cannot express an autoregressive model: use layout=qwen2")
    return llama.to_llama(config)


LLADA = Layout(
    "llada",
    table=llada_table,
    part_of=released_part,
    read_config=ModelConfig.from_dict,
    write_config=_llada_config,
    embedding="model.transformer.wte.weight",
    head="model.transformer.ff_out.weight",
)
LLAMA = Layout(
    "llama",
    table=llama_table,
    part_of=lambda config, entry, layer: Part(entry.released.format(layer=layer)),
    read_config=llama.from_llama,
    write_config=_llama_config,
    embedding="model.embed_tokens.weight",
    head="lm_head.weight",
    stores_tied_head=llama.stores_tied_head,
    # Rotary tables of old checkpoints; LLaDA-V's image tower, its projector, its newline vector.
    ignored=("rotary_emb.inv_freq", *llama.VISION),
)
QWEN2 = Layout(
    "qwen2",
    table=llama_table,
    part_of=lambda config, entry, layer: Part(entry.released.format(layer=layer)),
    read_config=qwen2.from_qwen2,
    write_config=qwen2.to_qwen2,
    embedding="model.embed_tokens.weight",
    head="lm_head.weight",
    ignored=("rotary_emb.inv_freq",),
)
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (LLADA, LLAMA)}
"""Those a mask predictor can have; `FOLDERS` adds that of its autoregressive twin."""
FOLDERS: dict[str, Layout] = {**LAYOUTS, QWEN2.name: QWEN2}


def own_layout(config: ModelConfig) -> Layout:
    """The layout in which a model is saved where nobody names another."""
    return QWEN2 if config.is_causal else LLADA


def layout_of(config_json: Mapping[str, Any]) -> Layout:
    """Returns the layout of the folder a config.json lies in; UserError names what is not known."""
    return FOLDERS[family_of(config_json).layout]


def find_layout(name: str) -> Layout:
    """Returns a layout by name."""
    if name not in FOLDERS:
        raise UserError(f"layout={name}: expected {' or '.join(FOLDERS)}{nearest(name, FOLDERS)}")
    return FOLDERS[name]
