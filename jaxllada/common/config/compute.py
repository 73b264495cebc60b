"""How a model is computed: precision, attention kernel, what is kept for the backward pass."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from jaxllada.common.config.train import TrainConfig
from jaxllada.common.errors import UserError

Dtype = Literal["float32", "bfloat16", "float16"]
Attention = Literal["auto", "xla", "cudnn", "splash"]
Remat = Literal["none", "full", "dots", "attention"]


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Precision and memory policy of a model; no field changes which function is computed."""

    param_dtype: Dtype = "float32"
    """Type in which weights are stored."""
    dtype: Dtype = "float32"
    """Type of activations and matrix products; sums inside a product are float32."""
    softmax_dtype: Literal["float32"] = "float32"
    """Type of attention scores and their softmax."""
    attention: Attention = "auto"
    """Attention kernel: xla anywhere, cudnn on NVIDIA GPUs, splash on TPUs; auto chooses."""
    remat: Remat = "none"
    """What the backward pass recomputes: nothing, whole blocks, all but matrix products (dots),
    or only the attention scores."""

    def __post_init__(self) -> None:
        kinds = {"param_dtype": Dtype, "dtype": Dtype, "attention": Attention, "remat": Remat}
        for name, kind in kinds.items():
            if getattr(self, name) not in get_args(kind):
                listed = ", ".join(get_args(kind))
                raise UserError(f"{name}={getattr(self, name)!r} is unknown: use one of {listed}")
        if self.softmax_dtype != "float32":
            raise UserError(f"softmax_dtype={self.softmax_dtype!r} is unknown: use float32")


def compute_config(config: TrainConfig) -> ComputeConfig:
    """Precision, attention kernel and remat policy of a training run."""
    choices: dict[str, Any] = {
        "attention": config.attn_implementation,
        "remat": config.remat_policy,
        "dtype": "bfloat16" if config.bf16 else "float32",
        "param_dtype": config.param_dtype,
    }
    return ComputeConfig(**choices)
