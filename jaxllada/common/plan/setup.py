"""What decides the memory of a training step on one device, in numbers that formulas can use."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from jaxllada.common.config.compute import Remat
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.counting import BYTES, ParameterCount, count_parameters
from jaxllada.common.errors import UserError

CHUNK = 256
"""Rows whose logits exist at one time in the memory-bounded loss."""

REMATS: tuple[Remat, ...] = ("none", "attention", "dots", "full")
"""Policies of recomputation, from the least work to the least memory."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One training step on one device of a mesh.

    `rows` is the micro-batch of one device (one tensor group). `adapter_rank` is 0 where all
    weights are trained. `scores_exist` says whether the attention kernel holds all its scores.
    """

    model: ModelConfig
    rows: int
    length: int
    accumulation: int = 1
    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"
    has_average: bool = False
    clips: bool = True
    is_masked: bool = False
    adapter_rank: int = 0
    adapter_targets: str = "all-linear"
    adapter_drops: bool = False
    scores_exist: bool = True

    @property
    def devices(self) -> int:
        """Devices of the mesh."""
        return self.data * self.fsdp * self.tensor

    @property
    def tokens(self) -> int:
        """Tokens of one micro-batch on one device."""
        return self.rows * self.length

    @property
    def number(self) -> int:
        """Bytes of one activation."""
        return BYTES[self.dtype]

    @property
    def count(self) -> ParameterCount:
        """Weights by part of the whole model."""
        return count_parameters(self.model)

    @property
    def layer(self) -> int:
        """Weights of the matrices of one block."""
        return (self.count.attention + self.count.mlp) // self.model.n_layers

    def replace(self, **changes: Any) -> "Setup":
        """The same step with other settings."""
        return dataclasses.replace(self, **changes)


def setup_of(config: TrainConfig, model: ModelConfig, devices: int) -> Setup:
    """Reads the settings of a run on `devices` devices.

    Raises UserError where mesh_data, mesh_fsdp and mesh_tensor do not fill the devices, and for an
    unknown remat.
    """
    if config.remat_policy not in REMATS:
        listed = ", ".join(REMATS)
        raise UserError(f"remat={config.remat!r} is unknown: use one of {listed}")
    data, fsdp, tensor = config.mesh_data, config.mesh_fsdp, config.mesh_tensor
    if data == -1:
        data = max(1, devices // (fsdp * tensor))
    if data * fsdp * tensor != devices:
        raise UserError(
            f"mesh_data={config.mesh_data} x mesh_fsdp={fsdp} x mesh_tensor={tensor}: "
            f"does not fill {devices} devices"
        )
    return Setup(
        model=model,
        rows=config.per_device_train_batch_size,
        length=config.max_length,
        accumulation=config.gradient_accumulation_steps,
        data=data,
        fsdp=fsdp,
        tensor=tensor,
        dtype="bfloat16" if config.bf16 else "float32",
        param_dtype=config.param_dtype,
        remat=config.remat_policy,
        has_average=config.ema_decay > 0,
        clips=config.max_grad_norm > 0,
        is_masked=config.random_length_ratio > 0,
        adapter_rank=config.r if config.lora else 0,
        adapter_targets=config.target_modules,
        adapter_drops=config.lora and config.lora_dropout > 0,
    )


def extra_work(setup: Setup) -> float:
    """Share by which recomputation makes a step's arithmetic longer.

    A step computes every product three times, once forward and twice backward; what is
    recomputed is computed a fourth time.
    """
    model, count = setup.model, setup.count
    products = count.attention + count.mlp
    scores = 2 * model.n_layers * model.d_model * setup.length
    # Half of the positions are masked on average, and only these have logits.
    total = 3 * (products + scores + model.rows * model.d_model / 2)
    again = {"none": 0, "attention": scores, "dots": scores, "full": products + scores}
    return again[setup.remat] / total
