"""Making a model of the family that a config belongs to: a mask predictor, or its causal twin."""

import torch

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.model import ModelConfig
from npu_backend.models.mask_predictor import MaskPredictor


def make_model(
    config: ModelConfig,
    *,
    compute: ComputeConfig | None = None,
    generator: torch.Generator | None = None,
) -> MaskPredictor:
    """Returns a model of the family of `config`; without a generator its weights are not set."""
    if config.is_causal:
        from npu_backend.models.causal_lm import CausalLM  # needs transformers

        return CausalLM(config, compute=compute, generator=generator)
    return MaskPredictor(config, compute=compute, generator=generator)


def abstract_model(config: ModelConfig, compute: ComputeConfig | None = None) -> MaskPredictor:
    """Returns a model on the `meta` device: shapes and types, no memory."""
    with torch.device("meta"):
        return make_model(config, compute=compute)
