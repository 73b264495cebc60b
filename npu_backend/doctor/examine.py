"""Which checks apply to a machine, in the order in which a user mends things."""

from npu_backend.doctor.check import Check
from npu_backend.doctor.hardware import devices, driver, host
from npu_backend.doctor.machine import Machine
from npu_backend.doctor.software import cann, packages
from npu_backend.doctor.variables import variables

_NO_DEVICE = Check(
    "device",
    "skip",
    "no Ascend NPU on this machine: no driver, no /dev/davinci*, no npu-smi",
    "run with --device cpu, or install driver and firmware where the card is",
)
_SIMULATED = Check(
    "device", "skip", "simulated NPUs (NPU_SIM=1): driver and CANN were not looked at"
)


def examine(machine: Machine, *, nodes: int = 1) -> list[Check]:
    """Runs every check that applies; `nodes` is the number of machines of the planned run."""
    if machine.is_simulated:
        return [_SIMULATED, *packages(machine), *variables(machine, nodes)]
    if not machine.has_device:
        return [_NO_DEVICE, *packages(machine)]
    return [
        *driver(machine),
        *devices(machine),
        *cann(machine),
        *packages(machine),
        *variables(machine, nodes),
        *host(machine),
    ]
