"""Masked-diffusion language models of the LLaDA family in JAX (arXiv:2502.09992v3).

Importing this package loads no framework: every public name is resolved when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxllada.common.version import __version__ as __version__

if TYPE_CHECKING:
    from jaxllada.common.config.compute import ComputeConfig
    from jaxllada.common.config.likelihood import LikelihoodConfig
    from jaxllada.common.config.model import ModelConfig
    from jaxllada.common.config.sampling import SamplingConfig
    from jaxllada.common.config.train import TrainConfig
    from jaxllada.common.errors import UserError
    from jaxllada.common.scores import Question
    from jaxllada.common.tokenizer import Tokenizer
    from jaxllada.convert import load, save
    from jaxllada.diffusion.likelihood import log_likelihood, score
    from jaxllada.diffusion.loss import masked_diffusion_loss, sft_loss
    from jaxllada.models.mask_predictor import MaskPredictor
    from jaxllada.sampling.generate import sample

_HOME = {
    "ComputeConfig": "jaxllada.common.config.compute",
    "LikelihoodConfig": "jaxllada.common.config.likelihood",
    "ModelConfig": "jaxllada.common.config.model",
    "SamplingConfig": "jaxllada.common.config.sampling",
    "TrainConfig": "jaxllada.common.config.train",
    "UserError": "jaxllada.common.errors",
    "Question": "jaxllada.common.scores",
    "Tokenizer": "jaxllada.common.tokenizer",
    "load": "jaxllada.convert",
    "save": "jaxllada.convert",
    "log_likelihood": "jaxllada.diffusion.likelihood",
    "score": "jaxllada.diffusion.likelihood",
    "masked_diffusion_loss": "jaxllada.diffusion.loss",
    "sft_loss": "jaxllada.diffusion.loss",
    "MaskPredictor": "jaxllada.models.mask_predictor",
    "sample": "jaxllada.sampling.generate",
}

__all__ = [
    "ComputeConfig",
    "LikelihoodConfig",
    "MaskPredictor",
    "ModelConfig",
    "Question",
    "SamplingConfig",
    "Tokenizer",
    "TrainConfig",
    "UserError",
    "load",
    "log_likelihood",
    "masked_diffusion_loss",
    "sample",
    "save",
    "score",
    "sft_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'jaxllada' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
