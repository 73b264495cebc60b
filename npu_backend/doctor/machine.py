"""What an Ascend machine looks like from outside: files, device nodes, variables, `npu-smi`.

Nothing here imports torch, torch_npu or a CANN library, and nothing raises for what is missing:
this is what `doctor` looks at when those cannot be imported.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from npu_backend.doctor.smi import Npu, parse_smi

_NODES = ("davinci_manager", "devmm_svm", "hisi_hdc")
_PACKAGES = ("torch", "torch_npu", "numpy", "transformers", "protobuf")
# CANN compiles operators in a Python process of its own, which imports these.
_COMPILER_MODULES = ("attr", "decorator", "psutil", "scipy", "sympy", "cffi", "yaml")


@dataclass(frozen=True)
class Toolkit:
    """One installation of CANN. `has_operators`: the binary kernels of a chip are there as well."""

    path: Path
    version: str
    has_operators: bool


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Everything `doctor` knows; empty or None where a thing was not found."""

    system: str
    python: str
    driver: str | None
    firmware: str | None
    nodes: tuple[Path, ...]
    missing_nodes: tuple[str, ...]
    locked_nodes: tuple[Path, ...]
    smi: str | None
    smi_error: str | None
    npus: tuple[Npu, ...]
    toolkits: tuple[Toolkit, ...]
    active: Toolkit | None
    has_libraries: bool
    packages: dict[str, str]
    torch_cuda: str | None
    compiler_missing: tuple[str, ...]
    interfaces: tuple[str, ...]
    host_memory: int | None
    environment: Mapping[str, str] = field(repr=False)

    @property
    def has_device(self) -> bool:
        """Whether any sign of an Ascend device was found."""
        return bool(self.nodes or self.npus or self.driver)

    @property
    def is_simulated(self) -> bool:
        """Whether the simulator of the test-suite plays the devices."""
        return self.environment.get("NPU_SIM") == "1"


def look(root: Path = Path("/"), environment: Mapping[str, str] | None = None) -> Machine:
    """Looks at the machine below `root` (another folder than / in tests)."""
    env = dict(os.environ if environment is None else environment)
    home = _install_path(root)
    nodes = tuple(sorted(root.glob("dev/davinci[0-9]*"), key=lambda p: int(p.name[7:])))
    companions = [root / "dev" / name for name in _NODES]
    smi = shutil.which("npu-smi", path=env.get("PATH")) or _existing(
        root / "usr/local/bin/npu-smi", root / "usr/local/sbin/npu-smi"
    )
    text, error = _run(smi) if smi else ("", None)
    toolkits = tuple(_toolkits(root, env))
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        python=".".join(map(str, sys.version_info[:3])),
        driver=_field(home / "driver/version.info", "Version"),
        firmware=_field(home / "firmware/version.info", "Version"),
        nodes=nodes,
        missing_nodes=tuple(str(p) for p in companions if nodes and not p.exists()),
        locked_nodes=tuple(
            p for p in (*nodes, *companions) if p.exists() and not os.access(p, os.R_OK | os.W_OK)
        ),
        smi=smi,
        smi_error=error,
        npus=parse_smi(text),
        toolkits=toolkits,
        active=_active(toolkits, env),
        has_libraries=_on_path("libascendcl.so", env.get("LD_LIBRARY_PATH", "")),
        packages=_packages(),
        torch_cuda=_torch_cuda(),
        compiler_missing=tuple(m for m in _COMPILER_MODULES if not _importable(m)),
        interfaces=tuple(sorted(p.name for p in root.glob("sys/class/net/*"))),
        host_memory=_available(root / "proc/meminfo"),
        environment=env,
    )


def _install_path(root: Path) -> Path:
    """Folder of driver and firmware, which the installer notes in /etc."""
    noted = _field(root / "etc/ascend_install.info", "Driver_Install_Path_Param")
    return root / (noted or "/usr/local/Ascend").lstrip("/")


def _toolkits(root: Path, env: Mapping[str, str]) -> list[Toolkit]:
    """Every CANN of the usual places and of the variables that set_env.sh sets, each once."""
    bases = [root / "usr/local/Ascend", *([Path(env["HOME"], "Ascend")] if "HOME" in env else [])]
    places = [Path(env[n]) for n in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME") if env.get(n)]
    for base in bases:
        places += sorted(base.glob("ascend-toolkit/*")) + sorted(base.glob("cann*"))
    found: dict[Path, Toolkit] = {}
    for place in places:
        files = sorted(place.glob("*-linux/ascend_toolkit_install.info"))
        version = _field(files[0], "version") if files else None
        if version is None:
            continue
        real = place.resolve()
        operators = any(place.glob("*-linux/ascend_ops_install.info")) or any(
            place.glob("opp/built-in/op_impl/ai_core/tbe/kernel/ascend*")
        )
        found.setdefault(real, Toolkit(place, version, operators))
    return list(found.values())


def _active(toolkits: tuple[Toolkit, ...], env: Mapping[str, str]) -> Toolkit | None:
    """The toolkit whose set_env.sh was sourced in this shell."""
    home = env.get("ASCEND_HOME_PATH") or env.get("ASCEND_TOOLKIT_HOME")
    if not home:
        return None
    real = Path(home).resolve()
    return next((t for t in toolkits if t.path.resolve() == real), None)


def _field(file: Path, key: str) -> str | None:
    """The value of `key=value` in a file; None where there is neither."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(rf"^\s*{key}\s*=\s*\[?([^\]\s:]+)", text, re.MULTILINE | re.IGNORECASE)
    return match[1] if match else None


def _existing(*files: Path) -> str | None:
    return next((str(file) for file in files if file.is_file()), None)


def _run(smi: str) -> tuple[str, str | None]:
    try:
        done = subprocess.run([smi, "info"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"{type(error).__name__}: {error}"
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        return done.stdout, said[-1] if said else f"exit code {done.returncode}"
    return done.stdout, None


def _on_path(name: str, paths: str) -> bool:
    return any(Path(folder, name).exists() for folder in paths.split(":") if folder)


def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _torch_cuda() -> str | None:
    """The CUDA version torch was built for, from its files; None for a CPU build."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"^cuda[^=\n]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return match[1] if match else None


def _importable(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _available(meminfo: Path) -> int | None:
    """Available host memory in bytes."""
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None
