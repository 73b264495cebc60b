"""The verb `plan` without its framework: settings in, prediction, layouts and launch line out."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxllada.common.config.compute import Remat
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.errors import UserError
from jaxllada.common.plan.footprint import Footprint
from jaxllada.common.plan.search import Layout, Predict, largest_rows, layouts, suggestion
from jaxllada.common.plan.setup import REMATS, Setup, setup_of
from jaxllada.common.run.origin import find_model

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class PlanConfig(TrainConfig):
    """The settings of the run to plan; its data is not looked at."""

    devices: int = 1
    """Devices of the run."""
    memory: float = 64.0
    """GiB of memory on each device."""
    headroom: float = 4.0
    """GiB of it left free for what is not predicted: runtime, kernels' workspace, fragments."""
    devices_per_node: int = 8
    """Devices of one machine; splitting weights across machines is taken only where it must be."""
    json: bool = False
    """Print one JSON object instead of tables."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("devices", "devices_per_node"):
            self.require(key, getattr(self, key) >= 1, "at least 1")
        self.require("memory", self.memory > 0, "above 0")
        self.require("headroom", 0 <= self.headroom < self.memory, "0 or more, below memory")
        nodes = self.devices / self.devices_per_node
        self.require("devices", nodes <= 1 or nodes == int(nodes), "whole machines")

    @property
    def budget(self) -> int:
        """Bytes of a device that may be used."""
        return int((self.memory - self.headroom) * GIB)


@dataclass(frozen=True)
class Plan:
    """What `plan` found out. `footprint` is None where the asked mesh does not fill the devices."""

    config: PlanConfig
    model: ModelConfig
    setup: Setup
    footprint: Footprint | None
    mismatch: str
    largest: int
    found: list[Layout]
    suggested: Setup | None

    @property
    def fits(self) -> bool:
        """Whether the run as configured stays within the memory."""
        return self.footprint is not None and self.footprint.total <= self.config.budget


def make_plan(
    config: PlanConfig,
    predict: Predict,
    *,
    remats: Sequence[Remat] = REMATS,
    adapt: Callable[[Setup], Setup] = lambda setup: setup,
    allows: Callable[[Setup], bool] = lambda setup: True,
) -> Plan:
    """Predicts the configured run and searches the layouts of its devices.

    `predict` is the formula of a backend, `adapt` fills in what only the backend knows, and
    `allows` tells which layouts it can run.
    """
    model = find_model(config.model_name_or_path, weights=False).config
    if config.max_length > model.max_sequence_length:
        raise UserError(
            f"max_length={config.max_length}: the model's max_sequence_length is "
            f"{model.max_sequence_length}"
        )
    _check_tensor(config, model)
    config = _typed(config, model)
    footprint, mismatch, largest = None, "", 0
    asked = config.mesh_fsdp * config.mesh_tensor * max(1, config.mesh_data)
    if config.devices % asked or (config.mesh_data > 0 and config.devices != asked):
        mismatch = (
            f"mesh_data={config.mesh_data} x mesh_fsdp={config.mesh_fsdp} x "
            f"mesh_tensor={config.mesh_tensor} does not fill {config.devices} devices"
        )
        whole = dataclasses.replace(config, mesh_data=-1, mesh_fsdp=1)
        setup = adapt(setup_of(whole, model, config.devices))
    else:
        setup = adapt(setup_of(config, model, config.devices))
        footprint = predict(setup)
        largest = largest_rows(setup, predict, config.budget)
    global_rows = setup.rows * setup.accumulation * setup.data * setup.fsdp
    found = layouts(
        setup,
        predict,
        config.budget,
        devices=config.devices,
        per_node=config.devices_per_node,
        remats=remats,
        allows=allows,
    )
    chosen = suggestion(setup, found, global_rows)
    return Plan(config, model, setup, footprint, mismatch, largest, found, chosen)


def _typed(config: PlanConfig, model: ModelConfig) -> PlanConfig:
    """Adapters of weights whose config.json names bfloat16: as the run will find them."""
    named = {model.extra.get(key) for key in ("torch_dtype", "dtype")}
    if not config.lora or config.bf16 is not None or "bfloat16" not in named:
        return config
    return dataclasses.replace(config, bf16=True, param_dtype="bfloat16")


def _check_tensor(config: PlanConfig, model: ModelConfig) -> None:
    tensor = config.mesh_tensor
    widths = {"n_heads": model.n_heads, "n_kv_heads": model.kv_heads, "devices": config.devices}
    for key, width in widths.items():
        if width % tensor:
            raise UserError(f"mesh_tensor={tensor}: does not divide {key}={width}")


def changed_keys(plan: Plan) -> dict[str, Any]:
    """Returns the settings in which the suggested run differs from the configured one."""
    config, chosen = plan.config, plan.suggested
    assert chosen is not None
    wanted: dict[str, Any] = {
        "mesh_data": chosen.data,
        "mesh_fsdp": chosen.fsdp,
        "per_device_train_batch_size": chosen.rows,
        "gradient_accumulation_steps": chosen.accumulation,
    }
    if config.mesh_data == -1:  # the rest of the devices, as many as the others leave
        del wanted["mesh_data"]
    changes = {key: value for key, value in wanted.items() if getattr(config, key) != value}
    if config.remat_policy != chosen.remat:
        if config.gradient_checkpointing:
            changes["gradient_checkpointing"] = False
        changes["remat"] = chosen.remat
    return changes


def written_keys(config: TrainConfig, arguments: Sequence[str] | None = None) -> list[str]:
    """Returns the arguments of a command that repeats this run: its file, or what is not default.

    `arguments` are those of the process unless given.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    own = {field.name for field in dataclasses.fields(TrainConfig)}
    file = [word for word in words if word.endswith((".yaml", ".yml"))][:1]
    base = TrainConfig()
    flags: list[str] = []
    for name in own if not file else ():
        if getattr(config, name) != getattr(base, name):
            flags += [f"--{name}", _text(getattr(config, name))]
    if file:  # flags of the command line win over the file, in the launch line as well
        for word in words:
            key = word.lstrip("-").partition("=")[0].replace("-", "_")
            if word.startswith("--") and key in own:
                flags += [f"--{key}", _text(getattr(config, key))]
    return file + flags


def as_flags(changes: dict[str, Any]) -> list[str]:
    """Writes settings as arguments."""
    return [word for key, value in changes.items() for word in (f"--{key}", _text(value))]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
