"""Opens the model that a verb names with the torch engine, on the device asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxllada.apps.answering import Options
from jaxllada.common.engine import Engine
from jaxllada.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DeviceKeys:
    """Where torch runs."""

    device: Literal["auto", "npu", "cuda", "cpu"] = "auto"
    """Where to compute: auto takes the first of npu, cuda and cpu that is there."""
    ops: Literal["auto", "fused", "plain"] = "auto"
    """Kernels on an NPU: fused, plain torch, or (auto) fused where a probe finds them exact."""


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(DeviceKeys, Options):
    """Keys of every verb that generates text with torch."""


def open_engine(options: Any, folder: Path) -> Engine:
    """Reads the weights of a model folder or a run, in the type the options ask for."""
    _check_average(options.average, folder)
    from npu_backend.causal_engine import engine_of
    from npu_backend.engine import TorchEngine

    engine = TorchEngine.from_folder(
        folder,
        options.dtype,
        device=options.device,
        ops=options.ops,
        adapter=options.adapter or None,
    )
    return engine_of(engine.model, options.ops)


def _check_average(average: bool | None, folder: Path) -> None:
    """The checkpoints of torch runs hold the average where one was kept, and only it."""
    if average is None:
        return
    from jaxllada.common.config.load import load_file
    from jaxllada.common.config.train import TrainConfig

    kept = load_file(TrainConfig, folder / "config.yaml").ema_decay > 0
    if average != kept:
        fact = "keeps the average alone" if kept else "was trained without ema_decay"
        raise UserError(f"average={str(average).lower()}: this run {fact}; leave the key out")
