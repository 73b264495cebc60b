"""Compiles the CANN stand-in that lets torch_npu load without Ascend software.

Needs a C compiler, nm and an installed torch_npu, which is only inspected, not imported.
"""

import importlib.util
import os
import pathlib
import re
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "ascend_sim"
SOURCES = [HERE / "cann_stub.c", HERE / "hccl_stub.c", HERE / "stub.h"]
# Everything is in the first library; the others carry names torch_npu asks for and refer to it.
LIBRARIES = [
    *("ascendcl", "hccl", "hcomm", "acl_op_compiler", "ge_runner"),
    *("graph", "acl_tdt_channel", "atb", "opapi"),
]


def symbols(kind, pattern, *files):
    """Dynamic symbols of libraries whose line in `nm` matches."""
    found = subprocess.run(["nm", "-D", kind, *files], capture_output=True, text=True, check=False)
    return set(re.findall(pattern, found.stdout, re.M))


def build(out):
    """Compiles all libraries into a folder."""
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)

    def compile_library(name, *arguments):
        linking = ["-Wl,--no-as-needed", f"-Wl,-soname,lib{name}.so"]
        flags = ["-O2", "-shared", "-fPIC", *linking, f"-I{HERE}"]
        compiler = os.environ.get("CC", "cc")
        subprocess.run([compiler, *flags, "-o", out / f"lib{name}.so", *arguments], check=True)

    code = [source for source in SOURCES if source.suffix == ".c"]
    compile_library(LIBRARIES[0], *code)
    wheel = pathlib.Path(importlib.util.find_spec("torch_npu").origin).parent
    users = [*wheel.glob("lib/lib*.so"), *wheel.glob("_C*.so")]
    wanted = symbols("--undefined-only", r" U ((?:acl|rt|hal|Msprof|Hccl)\w+)$", *users)
    there = symbols("--defined-only", r" T (\w+)$", out / f"lib{LIBRARIES[0]}.so")
    nothing = [f"int {name}(void) {{ return 0; }}\n" for name in sorted(wanted - there)]
    (out / "nothing.c").write_text("".join(nothing))
    compile_library(LIBRARIES[0], *code, out / "nothing.c")
    for name in LIBRARIES[1:]:
        compile_library(name, "-x", "c", "/dev/null", f"-L{out}", f"-l{LIBRARIES[0]}")


def libraries():
    """Paths of the compiled libraries, built first where missing or older than their sources."""
    out = pathlib.Path(os.environ.get("CANN_STUB_BUILD", BUILD))
    paths = [out / f"lib{name}.so" for name in LIBRARIES]
    changed = max(source.stat().st_mtime for source in [*SOURCES, pathlib.Path(__file__)])
    if not all(path.exists() and path.stat().st_mtime >= changed for path in paths):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=out
        ) as fresh:  # several processes may get here at once
            build(fresh)
            for path in paths:
                os.replace(pathlib.Path(fresh, path.name), path)
    return paths
