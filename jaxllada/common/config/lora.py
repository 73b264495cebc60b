"""Settings of low-rank adapters (LoRA, arXiv:2106.09685v2, section 4.1)."""

import math
from dataclasses import dataclass

from jaxllada.common.config.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """What adapters a model gets; the keys are those of a training run.

    `target_modules` are comma-separated names of either layout, or `all-linear`.
    """

    r: int
    lora_alpha: float
    use_rslora: bool = False
    lora_dropout: float = 0.0
    target_modules: str = "all-linear"

    @property
    def scale(self) -> float:
        """Factor on B A: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv:2312.03732, th. 3.2)."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


def drops_inputs(config: TrainConfig) -> bool:
    """Whether a run draws dropout for the inputs of its adapters."""
    return config.lora and config.lora_dropout > 0


def lora_config(config: TrainConfig) -> LoraConfig | None:
    """The adapters of a training run; None where all weights are trained."""
    if not config.lora:
        return None
    return LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        use_rslora=config.use_rslora,
        lora_dropout=config.lora_dropout,
        target_modules=config.target_modules,
    )
