"""Who may import whom, and what importing costs."""

import importlib.util
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxllada.__main__ import VERBS

ROOT = Path(__file__).parents[2]
FRAMEWORKS = {"jax", "jaxlib", "flax", "optax", "orbax", "torch", "torch_npu"}


def modules_of(package: str) -> list[str]:
    folder = ROOT / package.replace(".", "/")
    found = pkgutil.walk_packages([str(folder)], prefix=f"{package}.")
    return [package, *(m.name for m in found)]


NEUTRAL = [
    "jaxllada",
    "jaxllada.__main__",
    *modules_of("jaxllada.common"),
    *modules_of("jaxllada.apps"),
    *(module for module, _ in VERBS.values()),
]


def run_python(code: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("JAX")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True
    )


def test_neutral_modules_load_no_framework():
    """One fresh interpreter imports all of them in turn and names the first that loads JAX."""
    code = f"""
import importlib, sys
for name in {NEUTRAL!r}:
    importlib.import_module(name)
    loaded = {FRAMEWORKS!r} & sys.modules.keys()
    assert not loaded, f"{{name}} loads {{sorted(loaded)}}"
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["jaxllada", "jaxllada.__main__"])
def test_the_package_itself_loads_nothing_slow(package):
    slow = FRAMEWORKS | {"datasets", "matplotlib", "jsonargparse", "pandas", "pyarrow", "rich"}
    done = run_python(
        f"import sys, {package}\nloaded = {slow!r} & sys.modules.keys()\nassert not loaded, loaded"
    )
    assert done.returncode == 0, done.stderr


def test_jax_modules_load_without_torch():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed, so nothing can load it")
    names = [*modules_of("jaxllada.models"), *modules_of("jaxllada.sampling"), "jaxllada.convert"]
    code = f"import importlib, sys\nfor n in {names!r}: importlib.import_module(n)\n"
    done = run_python(code + "assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_torch_modules_load_without_jax_and_without_torch_npu():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    names = modules_of("npu_backend")
    code = f"import importlib, sys\nfor n in {names!r}: importlib.import_module(n)\n"
    forbidden = {"jax", "jaxlib", "flax", "optax", "orbax", "torch_npu"}
    done = run_python(code + f"assert not {forbidden!r} & sys.modules.keys()")
    assert done.returncode == 0, done.stderr


def test_layers_hold():
    """The contracts of pyproject.toml; the output names the chain of imports that breaks one."""
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_the_loader_imports_jsonargparse():
    users = {
        str(p.relative_to(ROOT))
        for p in (ROOT / "jaxllada").rglob("*.py")
        if any(line.strip().startswith(("import jsonargparse", "from jsonargparse"))
               for line in p.read_text().splitlines())
    }  # fmt: skip
    assert users == {"jaxllada/common/config/load.py"}


def test_public_names_are_all_there():
    import jaxllada

    for name in jaxllada.__all__:
        assert getattr(jaxllada, name).__name__ == name
    assert set(jaxllada.__all__) <= set(dir(jaxllada))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        jaxllada.lod  # noqa: B018
