"""A low-rank adapter as a value: which layers, their factors, and the weights with it added.

LoRA (arXiv:2106.09685v2, section 4.1) adds scale * B A to a frozen weight [out, in]. Here the
factors of a module are stacked over the layers, as the weights are: A [layers, r, in] and
B [layers, out, r]. The output head never takes part: LLaDA's block and head both have an `ff_out`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxllada.common.config.lora import LoraConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.errors import UserError
from jaxllada.common.noise import uniforms
from jaxllada.common.weights.names import Entry, llada_table
from jaxllada.common.weights.source import Source

Module = tuple[str, ...]
"""Path of a dense layer without its leaf, such as ("blocks", "attention", "q_proj")."""

_OTHER_NAMES = {"o_proj": "attn_out", "gate_proj": "ff_proj", "down_proj": "ff_out"}


@dataclass(frozen=True)
class Adapter:
    """Factors (A [layers, r, in], B [layers, out, r]) by module path, and their scale."""

    factors: Mapping[Module, tuple[np.ndarray, np.ndarray]]
    r: int
    lora_alpha: float
    use_rslora: bool = False
    lora_dropout: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def of(
        cls, factors: Mapping[Module, tuple[np.ndarray, np.ndarray]], lora: LoraConfig
    ) -> "Adapter":
        """Factors that were trained with these settings."""
        return cls(
            factors,
            r=lora.r,
            lora_alpha=lora.lora_alpha,
            use_rslora=lora.use_rslora,
            lora_dropout=lora.lora_dropout,
        )

    @property
    def settings(self) -> LoraConfig:
        """What a model is given to hold these factors."""
        return LoraConfig(
            r=self.r,
            lora_alpha=self.lora_alpha,
            use_rslora=self.use_rslora,
            lora_dropout=self.lora_dropout,
            target_modules=",".join(path[-1] for path in self.factors),
        )

    @property
    def scale(self) -> float:
        """Factor on B A, see `LoraConfig.scale`."""
        return self.settings.scale


def initial_a(config: ModelConfig, path: Module, r: int, width: int, seed: int) -> np.ndarray:
    """Draws the factor A [layers, r, width] of a module, uniform in +-1/sqrt(width), float32.

    As PEFT does, but a function of the seed and the place alone, the same on every backend.
    """
    place = target_paths(config, "all-linear").index(path)
    bound, count = 1 / np.sqrt(width), r * width
    draws = [
        uniforms(seed, _INITIAL, place << 32 | layer, count) for layer in range(config.n_layers)
    ]
    return ((2 * np.stack(draws) - 1) * bound).reshape(-1, r, width).astype(np.float32)


_INITIAL = (1 << 16) + 1
"""Stream of `common.noise` for factors; 1 << 16 seeds dropout, below are those of training."""


def target_paths(config: ModelConfig, names: str) -> tuple[Module, ...]:
    """Returns the module paths of comma-separated names, or of every linear layer in a block.

    Names are the last ones of either layout (`attn_out` is `o_proj`); `all-linear` takes all.

    Raises:
        UserError: a name that no block of this model has.
    """
    modules = {e.path[-2]: e.path[:-1] for e in llada_table(config) if is_kernel(e)}
    if names == "all-linear":
        return tuple(modules.values())
    chosen: dict[Module, None] = {}
    for name in (part.strip() for part in names.split(",")):
        if name == "att_proj" and config.block_type == "sequential":
            chosen |= dict.fromkeys(modules[leaf] for leaf in ("q_proj", "k_proj", "v_proj"))
        elif (leaf := _OTHER_NAMES.get(name, name)) in modules:
            chosen[modules[leaf]] = None
        else:
            listed = ", ".join(modules)
            raise UserError(f"target_modules={name}: expected all-linear or names of {listed}")
    return tuple(chosen)


class MergedSource:
    """A source with an adapter added: W + scale * B A, in float32.

    `files` is the folder of the adapter, if it lies on a disk.
    """

    def __init__(self, source: Source, adapter: Adapter, files: Path | None = None):
        self.source, self.adapter, self.files = source, adapter, files
        self.path, self.kind, self.config = source.path, source.kind, source.config

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every weight of the configuration."""
        return self.source.entries

    def dtype(self, entry: Entry) -> np.dtype:
        """float32 where something was added, so that rounding is left to the reader."""
        return np.dtype(np.float32) if self._factors(entry) else self.source.dtype(entry)

    @property
    def stored(self) -> np.dtype:
        """Type in which the base keeps its embedding: what a merged folder is written in."""
        return self.source.dtype(self.entries[0])

    def shape(self, entry: Entry) -> tuple[int, ...]:
        """Shape of one layer."""
        return self.source.shape(entry)

    def rows(self, entry: Entry) -> int:
        """Rows that are best read at a time."""
        return self.source.rows(entry)

    def read(self, entry: Entry, layer: int = 0, rows: tuple[int, int] | None = None) -> np.ndarray:
        """Reads a layer, or rows first to last (exclusive)."""
        weight = self.source.read(entry, layer, rows)
        if (factors := self._factors(entry)) is None:
            return weight
        a, b = (factor[layer].astype(np.float32) for factor in factors)
        a = a if rows is None else a[:, slice(*rows)]
        return weight.astype(np.float32) + np.float32(self.adapter.scale) * (b @ a).T

    def close(self) -> None:
        """Lets go of the files."""
        self.source.close()

    def _factors(self, entry: Entry) -> tuple[np.ndarray, np.ndarray] | None:
        return self.adapter.factors.get(entry.path[:-1]) if is_kernel(entry) else None


def is_kernel(entry: Entry) -> bool:
    """Whether an entry is the matrix of a dense layer in a block."""
    return entry.path[-1] == "kernel"
