"""The modules of jaxllada in PyTorch/torch_npu, for training and sampling on Ascend 910B.

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
    from npu_backend.convert import load, save
    from npu_backend.diffusion.likelihood import log_likelihood, score
    from npu_backend.diffusion.loss import masked_diffusion_loss, sft_loss
    from npu_backend.models.mask_predictor import MaskPredictor
    from npu_backend.sampling.generate import sample

_HOME = {
    "ComputeConfig": "jaxllada.common.config.compute",
    "LikelihoodConfig": "jaxllada.common.config.likelihood",
    "ModelConfig": "jaxllada.common.config.model",
    "SamplingConfig": "jaxllada.common.config.sampling",
    "TrainConfig": "jaxllada.common.config.train",
    "UserError": "jaxllada.common.errors",
    "Question": "jaxllada.common.scores",
    "Tokenizer": "jaxllada.common.tokenizer",
    "load": "npu_backend.convert",
    "save": "npu_backend.convert",
    "log_likelihood": "npu_backend.diffusion.likelihood",
    "score": "npu_backend.diffusion.likelihood",
    "masked_diffusion_loss": "npu_backend.diffusion.loss",
    "sft_loss": "npu_backend.diffusion.loss",
    "MaskPredictor": "npu_backend.models.mask_predictor",
    "sample": "npu_backend.sampling.generate",
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
        raise AttributeError(f"module 'npu_backend' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
