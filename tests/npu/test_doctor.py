"""Doctor on made-up machines: each broken thing is named with its fix, a sound one is ready."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from npu_backend import versions
from npu_backend.commands import doctor
from npu_backend.doctor.examine import examine
from npu_backend.doctor.machine import Machine, look
from npu_backend.doctor.smi import parse_smi

ROOT = Path(__file__).parents[2]
WIDTHS = (25, 13, 50)
RULE = "+" + "+".join("-" * (width + 2) for width in WIDTHS) + "+\n"


def cells(*texts: str) -> str:
    """One line of the table, its columns padded as `npu-smi` pads them."""
    padded = (text.ljust(width) for text, width in zip(texts, WIDTHS, strict=False))
    return f"| {' | '.join(padded)} |\n"


def smi_table(used=(3161, 3160), processes="", health="OK") -> str:
    """What `npu-smi info` prints for Atlas A2 cards."""
    heads = cells("NPU   Name", "Health", "Power(W)    Temp(C)           Hugepages-Usage(page)")
    heads += cells("Chip", "Bus-Id", "AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)")
    rows = "".join(
        cells(f"{number}     910B3", health, "93.6        40                0    / 0")
        + cells("0", f"0000:C{number}:00.0", f"0           0    / 0          {mib} / 65536")
        for number, mib in enumerate(used)
    )
    owners = cells("NPU     Chip", "Process id", "Process name             | Process memory(MB)")
    owners += RULE + (processes or cells("No running processes found in NPU 0"))
    version = cells("npu-smi 25.5.0                   Version: 25.5.0")
    return RULE + version + RULE + heads + RULE + rows + RULE + owners + RULE


def build(root: Path, *, driver="25.5.0", cann="9.1.0", operators=True, smi=None, chips=2) -> Path:
    """Lays out the files of an Ascend machine below `root`; returns the toolkit."""
    home = root / "usr/local/Ascend"
    for name in ("driver", "firmware"):
        (home / name).mkdir(parents=True)
        (home / name / "version.info").write_text(f"Version={driver}\nascendhal_version=7.35\n")
    toolkit = home / "ascend-toolkit/latest"
    info = toolkit / "x86_64-linux"
    info.mkdir(parents=True)
    (info / "ascend_toolkit_install.info").write_text(f"package_name=toolkit\nversion={cann}\n")
    if operators:
        (info / "ascend_ops_install.info").write_text(f"version={cann}\n")
    (toolkit / "lib64").mkdir()
    (toolkit / "lib64/libascendcl.so").touch()
    (root / "dev").mkdir()
    for name in [
        *(f"davinci{n}" for n in range(chips)),
        "davinci_manager",
        "devmm_svm",
        "hisi_hdc",
    ]:
        (root / "dev" / name).touch()
    (root / "sys/class/net/eth0").mkdir(parents=True)
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text("MemTotal: 1 kB\nMemAvailable: 209715200 kB\n")
    tool = root / "usr/local/bin/npu-smi"
    tool.parent.mkdir(parents=True)
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{smi or smi_table()}END\n")
    tool.chmod(0o755)
    return toolkit


def see(root: Path, toolkit: Path | None = None, packages=None, **environment) -> Machine:
    """Looks at it, with the packages of a sound environment unless told otherwise."""
    env = {"PATH": "/usr/bin:/bin", **environment}
    if toolkit is not None:
        env = {"ASCEND_HOME_PATH": str(toolkit), "LD_LIBRARY_PATH": f"{toolkit}/lib64", **env}
    return dataclasses.replace(
        look(root, env),
        packages=packages or {"torch": "2.12.0", "torch_npu": "2.12.0"},
        torch_cuda=None,
        compiler_missing=(),
    )


def found(machine: Machine, name: str, **options):
    checks = [check for check in examine(machine, **options) if check.name == name]
    assert len(checks) == 1, [check.name for check in examine(machine, **options)]
    return checks[0]


def test_a_sound_machine_has_nothing_to_mend(tmp_path):
    machine = see(tmp_path, build(tmp_path))
    assert machine.driver == "25.5.0"
    assert machine.active is not None
    assert machine.active.version == "9.1.0"
    assert [npu.free for npu in machine.npus] == [65536 - 3161, 65536 - 3160]
    assert {check.status for check in examine(machine)} == {"ok"}
    assert all(not check.fix for check in examine(machine))


@pytest.mark.parametrize(
    ("changes", "name", "said", "mend"),
    [
        ({"driver": "24.1.rc3"}, "driver", "needs 25.2", "Ascend HDK 25.2"),
        ({"cann": "8.5.0"}, "CANN", "needs 9.1.0", "upgrade CANN to 9.1.0"),
        ({"operators": False}, "CANN operators", "not installed", "910b"),
        ({"smi": smi_table(health="Alarm")}, "health", "0 (Alarm)", "ASCEND_RT_VISIBLE_DEVICES"),
        ({"smi": "dcmi module initialize failed\n"}, "npu-smi", "lists no NPU", "root"),
    ],
)
def test_each_broken_part_is_named_with_its_fix(tmp_path, changes, name, said, mend):
    check = found(see(tmp_path, build(tmp_path, **changes)), name)
    assert check.status == "fail"
    assert said in check.text
    assert mend in check.fix


@pytest.mark.parametrize(
    ("packages", "name", "said", "mend"),
    [
        ({"torch": "2.12.0", "torch_npu": "2.11.0"}, "torch_npu", "made for torch 2.11", "2.11.0"),
        ({"torch": "2.12.0"}, "torch_npu", "not installed", "jaxllada[npu]"),
        ({"torch": "2.5.1", "torch_npu": "2.5.1"}, "torch", "2.7 to below 2.14", "jaxllada[npu]"),
        ({"torch_npu": "2.12.0"}, "torch", "not installed", "jaxllada[npu]"),
    ],
)  # fmt: skip
def test_packages_that_do_not_go_together_are_named(tmp_path, packages, name, said, mend):
    check = found(see(tmp_path, build(tmp_path), packages=packages), name)
    assert check.status == "fail"
    assert said in check.text
    assert mend in check.fix


@pytest.mark.parametrize(
    ("environment", "status", "name"),
    [
        ({"HCCL_CONNECT_TIMEOUT": "30"}, "fail", "HCCL_CONNECT_TIMEOUT"),
        ({"HCCL_CONNECT_TIMEOUT": "soon"}, "fail", "HCCL_CONNECT_TIMEOUT"),
        ({"HCCL_EXEC_TIMEOUT": "3600"}, "fail", "HCCL_EXEC_TIMEOUT"),
        ({"HCCL_SOCKET_IFNAME": "ib0"}, "fail", "HCCL_SOCKET_IFNAME"),
        ({"HCCL_IF_IP": "10.0.0"}, "fail", "HCCL_IF_IP"),
        ({"ASCEND_RT_VISIBLE_DEVICES": "0,7"}, "fail", "ASCEND_RT_VISIBLE_DEVICES"),
        ({"ASCEND_RT_VISIBLE_DEVICES": ""}, "fail", "ASCEND_RT_VISIBLE_DEVICES"),
        ({"ASCEND_LAUNCH_BLOCKING": "1"}, "warn", "ASCEND_LAUNCH_BLOCKING"),
        (
            {"PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True,max_split_size_mb:256"},
            "fail",
            "PYTORCH_NPU_ALLOC_CONF",
        ),
        (
            {"PYTORCH_NPU_ALLOC_CONF": "a:1", "PYTORCH_ALLOC_CONF": "a:1"},
            "fail",
            "PYTORCH_ALLOC_CONF",
        ),
    ],
)
def test_a_variable_that_would_spoil_the_run_is_named(tmp_path, environment, status, name):
    check = found(see(tmp_path, build(tmp_path), **environment), name)
    assert check.status == status
    assert check.fix


def test_variables_that_are_right_are_left_alone(tmp_path):
    machine = see(
        tmp_path,
        build(tmp_path),
        HCCL_CONNECT_TIMEOUT="1200",
        HCCL_EXEC_TIMEOUT="3600",
        HCCL_EVENT_TIMEOUT="3630",
        HCCL_SOCKET_IFNAME="eth",
        ASCEND_RT_VISIBLE_DEVICES="1,0",
        PYTORCH_NPU_ALLOC_CONF="expandable_segments:True",
    )
    assert {check.status for check in examine(machine, nodes=4)} == {"ok"}


def test_several_nodes_want_a_long_connect_timeout_and_an_interface(tmp_path):
    machine = see(tmp_path, build(tmp_path))
    assert found(machine, "HCCL_CONNECT_TIMEOUT", nodes=4).status == "warn"
    assert "eth0" in found(machine, "HCCL_SOCKET_IFNAME", nodes=4).fix


def test_expandable_segments_want_a_driver_that_has_them(tmp_path):
    machine = see(
        tmp_path,
        build(tmp_path, driver="25.2.0"),
        PYTORCH_NPU_ALLOC_CONF="expandable_segments:True",
    )
    assert "driver 25.2.0" in found(machine, "PYTORCH_NPU_ALLOC_CONF").text


def test_a_toolkit_that_was_not_sourced_is_found_all_the_same(tmp_path):
    build(tmp_path)
    check = found(see(tmp_path), "CANN")
    assert check.status == "fail"
    assert "9.1.0" in check.text
    assert check.fix.startswith("source ")


def test_torch_npu_without_cann_is_recognised_before_it_breaks_the_import(tmp_path):
    """The wheel makes a plain `import torch` fail there; the two ways out are named."""
    check = found(see(tmp_path), "torch_npu")
    assert check.status == "fail"
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in check.fix
    assert "uninstall torch_npu" in check.fix
    quiet = see(tmp_path, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert found(quiet, "torch_npu").status == "ok"


def test_a_cuda_build_of_torch_is_refused_on_an_npu_machine(tmp_path):
    machine = dataclasses.replace(see(tmp_path, build(tmp_path)), torch_cuda="12.8")
    assert "CPU build" in found(machine, "torch").fix


def test_missing_and_locked_device_nodes_are_named(tmp_path):
    toolkit = build(tmp_path)
    (tmp_path / "dev/hisi_hdc").unlink()
    check = found(see(tmp_path, toolkit), "device nodes")
    assert "hisi_hdc" in check.text
    locked = dataclasses.replace(
        see(tmp_path, toolkit), missing_nodes=(), locked_nodes=(tmp_path / "dev/davinci0",)
    )
    assert "HwHiAiUser" in found(locked, "device nodes").fix


def test_a_busy_chip_is_named_with_its_processes_and_an_idle_one_offered(tmp_path):
    owner = cells("0       0", "4711", "python                   | 58000")
    toolkit = build(tmp_path, smi=smi_table((61000, 3160), owner))
    check = found(see(tmp_path, toolkit), "device memory")
    assert check.status == "warn"
    assert "4711 python" in check.text
    assert "ASCEND_RT_VISIBLE_DEVICES=1" in check.fix


def test_cards_of_two_chips_are_read_by_their_global_number():
    text = ""
    for physical in range(4):
        card, chip = divmod(physical, 2)
        text += cells(f"{card}     Ascend910", "OK", "164.0       36       0    / 0")
        memory = f"0           0    / 0          {3000 + physical} / 65536"
        text += cells(f"{chip}     {physical}", "0000:85:00.0", memory)
    text += cells("NPU     Chip", "Process id", "Process name")
    text += cells("1       0", "12", "train                    | 100")
    npus = parse_smi(text)
    assert [npu.index for npu in npus] == [0, 1, 2, 3]
    assert [npu.used for npu in npus] == [3000, 3001, 3002, 3003]
    assert npus[2].processes == ("12 train",)


def test_simulated_devices_are_not_asked_for_a_driver(tmp_path):
    machine = see(tmp_path, NPU_SIM="1")
    assert not [check for check in examine(machine) if check.status == "fail"]


@pytest.mark.parametrize(
    "ordered",
    [
        ["8.3.RC1", "8.5.0", "9.0.0", "9.1.0", "9.1.1"],
        ["24.1.rc3", "25.0.rc1", "25.0.0", "25.2.0", "25.5.1", "26.0.RC1"],
        ["2.7.1", "2.7.1.post4", "2.7.1.post10", "2.8.0", "2.13.0"],
    ],
)
def test_versions_sort_as_their_makers_mean_them(ordered):
    parsed = [versions.parse(text) for text in ordered]
    assert parsed == sorted(parsed)
    assert len(set(parsed)) == len(parsed)


def test_the_table_of_versions_is_read_as_published():
    assert versions.cann_for("2.7.1.post8") == ("9.1.0", True)
    assert versions.cann_for("2.8.0") == ("8.3.RC1", True)
    # Between two listed wheels the lower one's requirement holds, and is not called published.
    assert versions.cann_for("2.7.1.post5") == ("9.0.0", False)
    assert versions.cann_for("2.13.0") == ("9.1.0", False)
    assert versions.driver_for("9.1.1") == ("25.2", True)
    assert versions.driver_for("8.3.RC1") is None
    assert versions.is_at_least("25.2.RC1", "25.2")
    assert not versions.is_at_least("25.0.3", "25.2")


def test_the_verb_prints_json_and_exits_by_what_it_found(tmp_path, monkeypatch, capsys):
    def run(machine: Machine) -> tuple[int, dict]:
        monkeypatch.setattr(doctor, "look", lambda: machine)
        code = doctor.run(doctor.Config(json=True))
        return code, json.loads(capsys.readouterr().out)

    empty = tmp_path / "empty"
    empty.mkdir()
    code, report = run(see(empty, packages={"torch": "2.13.0"}))
    assert code == report["exit_code"] == doctor.NO_DEVICE
    assert not report["ready"]
    toolkit = build(tmp_path)
    code, report = run(see(tmp_path, toolkit))
    assert code == doctor.READY
    assert report["cann"] == "9.1.0"
    assert len(report["npus"]) == 2
    code, report = run(see(tmp_path, toolkit, HCCL_IF_IP="x"))
    assert code == doctor.BROKEN
    assert any(check["status"] == "fail" and check["fix"] for check in report["checks"])


def test_nothing_of_torch_is_imported():
    code = """
import sys
from npu_backend.commands import doctor
doctor.run(doctor.Config())
assert not {"torch", "torch_npu", "jax"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
