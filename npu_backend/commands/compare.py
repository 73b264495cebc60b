"""Trains a diffusion model and its autoregressive twin on the same data, once and repeated.

    python -m npu_backend compare configs/compare/pystdlib.yaml --device cpu

Every run is a plain run folder in output_dir; an interrupted comparison goes on where it was when
the command is given again. The table, its numbers and the picture are compare.md, .json and .png.
"""

import dataclasses

from jaxllada.apps import compare
from npu_backend.commands import pretrain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(compare.CompareConfig, pretrain.Config):
    pass


def run(config: Config) -> int:
    """Trains; returns 0, 1 after divergence, or 128 + the number of the signal that stopped it."""
    return compare.run(config, pretrain.pretrain, pretrain.Config)
