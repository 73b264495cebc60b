"""Builds a C++ kernel for this CPU, once, and keeps it beside the compiled programs of JAX.

JAXLLADA_NATIVE=0 does without kernels, CXX names the compiler. Where there is none, or it fails,
XLA does the work: slower, and with the same result up to rounding.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from jaxllada.common.errors import UserError
from jaxllada.common.notices import notice

SOURCES = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """Loads the kernel of NAME.cc, building it first if need be; None where that cannot be.

    Raises `UserError` for a JAXLLADA_NATIVE that is neither 0 nor 1.
    """
    wanted = os.environ.get("JAXLLADA_NATIVE", "1")
    if wanted not in ("0", "1"):
        raise UserError(f"JAXLLADA_NATIVE={wanted} must be 1, build kernels, or 0, do without")
    compiler = _compiler()
    if wanted == "0" or compiler is None:
        return None
    try:
        return ctypes.CDLL(str(_built(name, compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        printed = getattr(error, "stderr", None) or str(error)
        reason = next((line for line in printed.splitlines() if "error" in line), printed.strip())
        notice(f"the {name} kernel could not be built ({reason}): XLA does its work, slower")
        return None


def cpu_has(*features: str) -> bool:
    """Whether the processor lists these features (Linux)."""
    return set(features) <= set(_cpu().decode().split())


def _compiler() -> str | None:
    chosen = os.environ.get("CXX")
    found = (shutil.which(one) for one in ((chosen,) if chosen else COMPILERS))
    return next((path for path in found if path), None)


def _built(name: str, compiler: str) -> Path:
    import jax

    source = SOURCES / f"{name}.cc"
    read = [path.read_bytes() for path in (source, *sorted(SOURCES.glob("*.h")))]
    # A home directory may be shared by machines: the name says what a file was built for.
    origin = (*read, compiler.encode(), jax.__version__.encode(), _cpu())
    digest = hashlib.sha256(b"\0".join(origin)).hexdigest()[:16]
    cache = os.environ.get("JAXLLADA_CACHE") or Path.home() / ".cache" / "jaxllada"
    home = Path(cache) / "native"
    target = home / f"{name}-{digest}.so"
    if target.exists():
        return target
    home.mkdir(parents=True, exist_ok=True)
    notice(f"building the {name} kernel for this CPU, once")
    own = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    with tempfile.TemporaryDirectory(dir=home) as folder:
        part = Path(folder) / target.name
        subprocess.run(
            [compiler, "-O3", own, "-std=c++17", "-shared", "-fPIC", "-pthread", "-w",
             "-isystem", jax.ffi.include_dir(), str(source), "-o", str(part)],
            check=True, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        part.replace(target)
    return target


def _cpu() -> bytes:
    """What tells processors apart whose native code differs."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.release()}".encode()
    kinds = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)})).encode()
