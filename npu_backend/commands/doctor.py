"""Checks an Ascend machine before a run: driver, CANN, versions, variables, memory; prints the fix.

    python -m npu_backend doctor
    python -m npu_backend doctor --nodes 4 --json

It imports neither torch nor torch_npu, so it also works where those fail. Exit code 0: ready (or
nothing but warnings), 1: something must be mended, 3: no Ascend device, the rest is fine.
"""

import dataclasses
import json
from dataclasses import dataclass

from jaxllada.common.errors import UserError
from npu_backend.doctor.check import Check, line
from npu_backend.doctor.examine import examine
from npu_backend.doctor.machine import look

READY, BROKEN, NO_DEVICE = 0, 1, 3


@dataclass(frozen=True, kw_only=True)
class Config:
    nodes: int = 1
    """Machines of the planned run; above 1 the network settings are checked too."""
    json: bool = False
    """Print one JSON object instead of lines."""

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise UserError(f"nodes={self.nodes}: expected at least 1")


def run(config: Config) -> int:
    """Prints what was found; returns 0, 1 or 3."""
    machine = look()
    checks = examine(machine, nodes=config.nodes)
    is_ready = machine.has_device or machine.is_simulated
    broken = any(check.status == "fail" for check in checks)
    code = BROKEN if broken else READY if is_ready else NO_DEVICE
    if config.json:
        report = {
            "ready": code == READY,
            "exit_code": code,
            "system": machine.system,
            "python": machine.python,
            "driver": machine.driver,
            "firmware": machine.firmware,
            "cann": machine.active.version if machine.active else None,
            "packages": machine.packages,
            "npus": [dataclasses.asdict(npu) for npu in machine.npus],
            "checks": [dataclasses.asdict(check) for check in checks],
        }
        print(json.dumps(report, indent=2))
        return code
    print(f"{machine.system}, Python {machine.python}")
    for check in checks:
        print(line(check))
    print(verdict(checks, code))
    return code


def verdict(checks: list[Check], code: int) -> str:
    """The last line."""
    if code == NO_DEVICE:
        return "\nno Ascend device here: every verb runs with --device cpu"
    fails = sum(check.status == "fail" for check in checks)
    warnings = sum(check.status == "warn" for check in checks)
    if fails:
        return f"\n{fails} to mend, {warnings} to look at"
    return "\nready" + (f", {warnings} to look at" if warnings else "")
