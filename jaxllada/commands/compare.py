"""Trains a diffusion model and its autoregressive twin on the same data, once and repeated.

    jaxllada compare configs/compare/pystdlib.yaml
    jaxllada compare output/compare/config.yaml --repeats 1,4,16,64

Every run is a plain run folder in output_dir; an interrupted comparison goes on where it was when
the command is given again. The table, its numbers and the picture are compare.md, .json and .png.
"""

from jaxllada.apps import compare
from jaxllada.common.config.train import TrainConfig

Config = compare.CompareConfig


def run(config: Config) -> int:
    """Trains; returns 0, 1 after divergence, or 128 + the number of the signal that stopped it."""
    from jaxllada.commands.pretrain import pretrain

    return compare.run(config, pretrain, TrainConfig)
