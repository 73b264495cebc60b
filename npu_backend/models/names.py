"""The name table of `common/weights/names.py` in the words of torch modules."""

import functools
from collections.abc import Iterator

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.weights.layouts import own_layout
from jaxllada.common.weights.names import Entry, Part, llada_table


def parameter_name(config: ModelConfig, entry: Entry, layer: int = 0) -> str:
    """Name of the parameter that holds (a layer of) a weight of the name table.

    Dense layers keep the released orientation [out, in] under the name `weight`. The autoregressive
    twin has the names of transformers, which are those of its files.
    """
    if config.is_causal:
        return f"network.{_stored(config)[entry.path, layer].name}"
    first, *rest = entry.path
    names = [first, str(layer), *rest] if entry.per_layer else [first, *rest]
    return ".".join("weight" if name == "kernel" else name for name in names)


def layers_of(config: ModelConfig, entry: Entry) -> range:
    """Layers that have such a weight: all of them, or one pass for what is outside the blocks."""
    return range(config.n_layers if entry.per_layer else 1)


def placements(config: ModelConfig) -> Iterator[tuple[str, Entry, int]]:
    """Yields (parameter name, entry, layer) of every weight."""
    for entry in llada_table(config):
        for layer in layers_of(config, entry):
            yield parameter_name(config, entry, layer), entry, layer


@functools.lru_cache(maxsize=4)
def _stored(config: ModelConfig) -> dict[tuple[tuple[str, ...], int], Part]:
    return own_layout(config).parts(config)
