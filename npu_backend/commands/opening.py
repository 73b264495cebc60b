"""Opens the model that a verb names with the torch engine, on the device asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxllada.apps.answering import Options
from jaxllada.common.errors import UserError

if TYPE_CHECKING:
    from npu_backend.engine import TorchEngine


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options):
    """Where torch runs."""

    device: Literal["auto", "npu", "cuda", "cpu"] = "auto"
    """Where to compute: auto takes the first of npu, cuda and cpu that is there."""
    ops: Literal["auto", "fused", "plain"] = "auto"
    """Kernels on an NPU: fused, plain torch, or (auto) fused where a probe finds them exact."""


def open_engine(options: DeviceOptions, folder: Path) -> "TorchEngine":
    """Reads the weights of a model folder or a run, in the type the options ask for."""
    _check_average(options.average, folder)
    from npu_backend.engine import TorchEngine

    return TorchEngine.from_folder(folder, options.dtype, device=options.device, ops=options.ops)


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
