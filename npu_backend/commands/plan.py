"""Predicts the memory of a training run before it starts, and how to cut it for the devices.

    python -m npu_backend plan configs/pretrain/llada-8b.yaml --devices 8 --memory 64
    python -m npu_backend plan --model_name_or_path llada-8b --lora true --r 64 --bf16 true \\
        --param_dtype bfloat16 --max_length 4096 --devices 1 --memory 64

Prints the peak of a card by term, the largest micro-batch, the layouts that fit and the line to
launch. Needs neither torch nor an NPU. Exit code 1 when no layout fits. Most keys are those of
`pretrain`; the last ones are the plan's own.
"""

import os
from dataclasses import dataclass
from typing import Literal

from jaxllada.common.errors import UserError
from jaxllada.common.plan.eager import eager_footprint
from jaxllada.common.plan.footprint import Footprint
from jaxllada.common.plan.report import as_json, command, text
from jaxllada.common.plan.search import Predict
from jaxllada.common.plan.setup import Setup
from jaxllada.common.plan.verb import Plan, PlanConfig, make_plan

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Config(PlanConfig):
    headroom: float = 8.0
    """GiB of it left free for what is not predicted: the driver and the kernels' workspace (4 to 6
    on a 910B), and what the allocator holds in fragments."""
    ops: Literal["auto", "fused", "plain"] = "auto"
    """Kernels: plain torch holds all attention scores; auto is planned as fused."""
    hccl_buffsize: int = 0
    """MiB of each of the two buffers of a communicator; 0: $HCCL_BUFFSIZE, else HCCL's own 200."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("mesh_tensor", self.mesh_tensor == 1, "1: torch splits with mesh_fsdp")
        self.require("hccl_buffsize", self.hccl_buffsize >= 0, "0 or more")


def run(config: Config) -> int:
    """Prints the plan; returns 1 when nothing fits."""
    plan = make_plan(config, predictor(config.ops != "plain", config.hccl_buffsize))
    print((as_json if config.json else text)(plan, _launch, _notes()))
    return 0 if plan.found else 1


def predictor(fused: bool, hccl_buffsize: int = 0, *, has_hccl: bool = True) -> Predict:
    """The formula of this backend; arguments as the keys `ops` and `hccl_buffsize`."""
    size = (hccl_buffsize or _buffsize()) * MIB if has_hccl else 0

    def predict(setup: Setup) -> Footprint:
        # One communicator for the run, one for each axis that splits something.
        groups = (setup.devices > 1) + (setup.data > 1) + (setup.fsdp > 1)
        return eager_footprint(setup, fused=fused, communication=2 * size * groups)

    return predict


def _notes() -> list[str]:
    return [
        "lower bounds: the allocator's fragments and the kernels' workspace come on top; "
        "PYTORCH_NPU_ALLOC_CONF=expandable_segments:True keeps fragments small"
    ]


def _buffsize() -> int:
    value = os.environ.get("HCCL_BUFFSIZE", "200")
    if not value.isdecimal() or int(value) == 0:
        raise UserError(f"HCCL_BUFFSIZE={value!r}: expected a number of MB")
    return int(value)


def _launch(plan: Plan, arguments: list[str]) -> str:
    """The script that starts one process a card; on every machine of several."""
    devices, per_node = plan.config.devices, plan.config.devices_per_node
    nodes = -(-devices // per_node)
    words = ["./launch/npu_train.sh", *arguments, "--nproc", str(min(devices, per_node))]
    if nodes > 1:
        words += ["--nnodes", str(nodes), "--node_rank", "0", "--master_addr", "HOST"]
        return command(words) + "   # and so on, on each machine"
    return command(words)
