"""Checks of driver, devices and memory."""

from collections.abc import Iterator

from npu_backend.doctor.check import Check
from npu_backend.doctor.machine import Machine
from npu_backend.versions import driver_for, is_at_least

BUSY = 6 * 1024
"""MiB in use on a chip above which somebody else is on it; the driver itself takes 3 to 4 GiB."""


def driver(machine: Machine) -> Iterator[Check]:
    if machine.driver is None:
        yield Check(
            "driver",
            "fail",
            "version.info of the driver not found",
            "install the driver (Ascend HDK) as root; in a container mount "
            "/usr/local/Ascend/driver and /etc/ascend_install.info from the host",
        )
        return
    firmware = f", firmware {machine.firmware}" if machine.firmware else ""
    cann = machine.active or next(iter(machine.toolkits), None)
    wanted = driver_for(cann.version) if cann else None
    if cann and wanted and not is_at_least(machine.driver, wanted.version):
        yield Check(
            "driver",
            "fail",
            f"{machine.driver}{firmware}: CANN {cann.version} needs {wanted.version} or later",
            f"upgrade driver and firmware to Ascend HDK {wanted.version} or later, "
            "firmware after driver, then reboot",
        )
    elif cann and wanted is None:
        yield Check(
            "driver", "ok", f"{machine.driver}{firmware} (not in the table for CANN {cann.version})"
        )
    else:
        yield Check("driver", "ok", f"{machine.driver}{firmware}")


def devices(machine: Machine) -> Iterator[Check]:
    if machine.missing_nodes or not machine.nodes:
        missing = ", ".join(machine.missing_nodes) or "/dev/davinci*"
        yield Check(
            "device nodes",
            "fail",
            f"missing: {missing}",
            "in a container pass --device for /dev/davinci0.., /dev/davinci_manager, "
            "/dev/devmm_svm and /dev/hisi_hdc; on the host load the driver (reboot)",
        )
    elif machine.locked_nodes:
        shown = ", ".join(map(str, machine.locked_nodes[:3]))
        yield Check(
            "device nodes",
            "fail",
            f"no permission to open {shown}",
            "add your user to the group of the device (usermod -aG HwHiAiUser USER), log in anew",
        )
    else:
        yield Check("device nodes", "ok", f"{len(machine.nodes)} davinci devices")
    if machine.smi is None:
        yield Check(
            "npu-smi",
            "warn",
            "not found: health and memory are not known",
            "it comes with the driver; in a container mount /usr/local/bin/npu-smi and "
            "/usr/local/dcmi",
        )
        return
    if machine.smi_error or not machine.npus:
        yield Check(
            "npu-smi",
            "fail",
            f"npu-smi info: {machine.smi_error or 'lists no NPU'}",
            "run it as root; if it fails there too, reinstall the driver or look at dmesg",
        )
        return
    sick = [n for n in machine.npus if n.health.upper() not in ("OK", "WARNING")]
    if sick:
        shown = ", ".join(f"{n.index} ({n.health})" for n in sick)
        visible = ",".join(str(n.index) for n in machine.npus if n not in sick)
        yield Check(
            "health",
            "fail",
            f"not healthy: NPU {shown}",
            f"leave them out with ASCEND_RT_VISIBLE_DEVICES={visible}, and report the card",
        )
    else:
        names = sorted({n.name for n in machine.npus})
        yield Check("health", "ok", f"{len(machine.npus)} x {', '.join(names)}")
    yield from _memory(machine)


def _memory(machine: Machine) -> Iterator[Check]:
    busy = [n for n in machine.npus if n.used > BUSY or n.processes]
    if not busy:
        least = min(machine.npus, key=lambda n: n.free)
        yield Check(
            "device memory", "ok", f"at least {least.free / 1024:.1f} GiB free on every NPU"
        )
        return
    shown = "; ".join(
        f"NPU {n.index}: {n.used / 1024:.1f} of {n.total / 1024:.0f} GiB used"
        + (f" by {', '.join(n.processes)}" if n.processes else "")
        for n in busy
    )
    idle = ",".join(str(n.index) for n in machine.npus if n not in busy)
    elsewhere = f", or use ASCEND_RT_VISIBLE_DEVICES={idle}" if idle else ""
    yield Check(
        "device memory",
        "warn",
        shown,
        f"end those processes (after a killed run wait ten seconds){elsewhere}",
    )


def host(machine: Machine) -> Iterator[Check]:
    if machine.host_memory is None:
        return
    gib = machine.host_memory / 2**30
    chips = max(1, len(machine.npus) or len(machine.nodes))
    if gib < 4 * chips:
        yield Check(
            "host memory",
            "warn",
            f"{gib:.0f} GiB available for {chips} processes",
            "each process holds its libraries and prepared batches: leave about 4 GiB for each",
        )
    else:
        yield Check("host memory", "ok", f"{gib:.0f} GiB available")
