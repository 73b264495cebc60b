"""Finds the device to run on, and starts torch_npu where there is one.

torch_npu is loaded here and nowhere else: where Ascend's software is missing its import fails, so
it is only tried when an NPU is asked for or its driver is seen.
"""

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Literal, get_args

import torch

from jaxllada.common.errors import UserError

DeviceName = Literal["auto", "npu", "cuda", "cpu"]


def find_device(name: str = "auto") -> torch.device:
    """Returns the device of that kind: this process's own where torchrun numbers processes.

    `auto` takes an NPU if there is one, then a CUDA GPU, then the CPU.

    Raises:
        UserError: the named kind is not there, with what to do about it.
    """
    if name not in get_args(DeviceName):
        listed = ", ".join(get_args(DeviceName))
        raise UserError(f"device={name!r} is unknown: use one of {listed}")
    if name == "npu" or (name == "auto" and _sees_npu()):
        problem = _start_npu()
        if problem:
            raise UserError(
                f"device={name}: {problem}; `python -m npu_backend doctor` says what to repair, "
                "--device cpu works anywhere"
            )
        return _own("npu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch sees no CUDA GPU here; --device cpu works anywhere")
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        return _own("cuda")
    return torch.device("cpu")


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type != "cpu":
        torch.get_device_module(device.type).synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Largest number of bytes that tensors took on the device so far; 0 on a CPU."""
    if device.type == "cpu":
        return 0
    return torch.get_device_module(device.type).max_memory_allocated(device)


def forget_peak_memory(device: torch.device) -> None:
    """Starts `peak_memory` anew, from what tensors take now."""
    if device.type != "cpu":
        torch.get_device_module(device.type).reset_peak_memory_stats(device)


def count_devices(device: torch.device) -> int:
    """How many devices of this kind the process sees; the CPU is one."""
    return 1 if device.type == "cpu" else torch.get_device_module(device.type).device_count()


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cpu":
        return "cpu"
    return torch.get_device_module(device.type).get_device_name(device)


def _own(kind: str) -> torch.device:
    module = torch.get_device_module(kind)
    device = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0")) % module.device_count())
    module.set_device(device)
    return device


def _sees_npu() -> bool:
    """Whether torch_npu is loaded, or installed beside the driver's device files."""
    if hasattr(torch, "npu"):
        return torch.npu.is_available()  # pyright: ignore[reportAttributeAccessIssue]
    has_driver = any(Path("/dev").glob("davinci[0-9]*"))
    return has_driver and importlib.util.find_spec("torch_npu") is not None


def _start_npu() -> str:
    """Imports torch_npu; returns what is wrong, or an empty string."""
    if importlib.util.find_spec("torch_npu") is None:
        return "torch_npu is not installed (pip install 'jaxllada[npu]')"
    try:
        importlib.import_module("torch_npu")
    except (ImportError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"torch_npu does not load ({first})"
    if not torch.npu.is_available():  # pyright: ignore[reportAttributeAccessIssue]
        return "torch_npu sees no NPU"
    return ""
