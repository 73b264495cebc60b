"""Checks of CANN and of the Python packages against the table of versions."""

from collections.abc import Iterator

from npu_backend.doctor.check import Check
from npu_backend.doctor.machine import Machine
from npu_backend.versions import (
    TESTED,
    TORCH_RANGE,
    cann_for,
    is_at_least,
    match_torch,
    parse,
    supports_torch,
)

SOURCE = "source /usr/local/Ascend/ascend-toolkit/set_env.sh (or the set_env.sh below your CANN)"


def cann(machine: Machine) -> Iterator[Check]:
    if not machine.toolkits:
        yield Check(
            "CANN",
            "fail",
            "no toolkit below /usr/local/Ascend and none in ASCEND_HOME_PATH",
            f"install the CANN toolkit and the operator package of the chip, then {SOURCE}",
        )
        return
    if machine.active is None:
        installed = ", ".join(f"{t.version} in {t.path}" for t in machine.toolkits)
        yield Check("CANN", "fail", f"installed ({installed}) but not set in this shell", SOURCE)
        return
    active = machine.active
    if not machine.has_libraries:
        yield Check(
            "CANN",
            "fail",
            f"{active.version}, but libascendcl.so is nowhere in LD_LIBRARY_PATH",
            f"{SOURCE}; something later in the shell's start-up may have reset LD_LIBRARY_PATH",
        )
        return
    torch_npu = machine.packages.get("torch_npu")
    wanted = cann_for(torch_npu) if torch_npu else None
    if wanted and not is_at_least(active.version, wanted.version):
        sure = "needs" if wanted.is_published else "presumably needs"
        yield Check(
            "CANN",
            "fail" if wanted.is_published else "warn",
            f"{active.version}: torch_npu {torch_npu} {sure} {wanted.version} or later",
            f"upgrade CANN to {wanted.version}, or install the torch_npu made for CANN "
            f"{active.version} with its torch",
        )
    else:
        yield Check("CANN", "ok", f"{active.version} in {active.path}")
    if not active.has_operators:
        yield Check(
            "CANN operators",
            "fail",
            "the package with the chip's operators is not installed",
            "install Ascend-cann-kernels-910b (from CANN 8.5 on: Ascend-cann-910b-ops) of the same "
            "version as the toolkit",
        )


def packages(machine: Machine) -> Iterator[Check]:
    torch, torch_npu = machine.packages.get("torch"), machine.packages.get("torch_npu")
    install = f"pip install 'jaxllada[npu]' (torch and torch_npu {TESTED})"
    if torch is None:
        yield Check("torch", "fail", "not installed", install)
        return
    if not supports_torch(torch):
        low, high = TORCH_RANGE
        yield Check("torch", "fail", f"{torch}: this package takes {low} to below {high}", install)
    elif machine.torch_cuda and (torch_npu or machine.has_device):
        yield Check(
            "torch",
            "fail",
            f"{torch} is built for CUDA {machine.torch_cuda}; torch_npu wants the CPU build",
            "uninstall it and install the CPU build of the same version",
        )
    else:
        tested = "" if torch.partition("+")[0] == TESTED else f" (tested with {TESTED})"
        yield Check("torch", "ok", f"{torch}{tested}")
    yield from _torch_npu(machine, torch, torch_npu, install)
    if torch_npu and machine.has_device and machine.compiler_missing:
        yield Check(
            "CANN's Python modules",
            "warn",
            f"missing: {', '.join(machine.compiler_missing)}",
            "CANN's operator compiler imports them: pip install attrs decorator psutil scipy sympy "
            "cffi pyyaml",
        )


def _torch_npu(
    machine: Machine, torch: str, torch_npu: str | None, install: str
) -> Iterator[Check]:
    autoload = machine.environment.get("TORCH_DEVICE_BACKEND_AUTOLOAD") != "0"
    if torch_npu is None:
        needed = machine.has_device or machine.is_simulated
        yield Check(
            "torch_npu",
            "fail" if needed else "ok",
            "not installed" if needed else "not installed, and not needed here",
            install if needed else "",
        )
    elif not match_torch(torch, torch_npu):
        wheel = ".".join(map(str, parse(torch_npu)[:3]))
        yield Check(
            "torch_npu",
            "fail",
            f"{torch_npu} is made for torch {wheel}, installed is {torch}",
            f"pip install torch=={wheel} torch_npu=={torch_npu}",
        )
    elif not machine.has_libraries and not machine.is_simulated and autoload:
        yield Check(
            "torch_npu",
            "fail",
            f"{torch_npu}, but CANN's libraries are not found: even `import torch` fails",
            f"{SOURCE}; on a machine without NPU: export TORCH_DEVICE_BACKEND_AUTOLOAD=0, "
            "or pip uninstall torch_npu",
        )
    else:
        yield Check("torch_npu", "ok", torch_npu)
