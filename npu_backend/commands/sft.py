"""Fine-tunes a masked-diffusion language model on answers (LLaDA, arXiv:2502.09992v3, section 2.3).

    python -m npu_backend sft configs/sft/quickstart.yaml --device cpu
    ./launch/npu_train.sh sft configs/sft/llada-8b.yaml --mesh_fsdp 8

The same settings, data, noise and files as `jaxllada sft`.
"""

import dataclasses

from jaxllada.common.config.sft import SftConfig
from npu_backend.commands import pretrain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(SftConfig, pretrain.Config):
    """One fine-tuning run, and the devices it runs on."""


def run(config: Config) -> int:
    """Trains; returns 0, 1 after divergence, or 128 + the number of the signal that stopped it."""
    return pretrain.run(config)
