"""Settings of every test: CPU, annotated shapes checked, random keys used once.

They are set here, before anything imports JAX. `JAXLLADA_TEST_SHAPES=0` runs without the checker,
`JAX_PLATFORMS=cuda` on a GPU.
"""

import os
from collections import Counter

import pytest

pytest.register_assert_rewrite("tests.both")

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DEBUG_KEY_REUSE", "1")
# Programs of tests run for milliseconds, and compiling them was most of the suite's time. Without
# LLVM's optimiser and the newer emitters XLA takes a quarter of it for the same programs.
# contracts/test_compiler.py holds the golden values, and bits, to XLA as users run it.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ.setdefault("XLA_FLAGS", QUICK)
# Built kernels have tests of their own; everything else is held with XLA alone.
os.environ.setdefault("JAXLLADA_NATIVE", "0")
# Models of tests are tiny: threads of torch would mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests must not wait for a hub or a tracking server that may not be there.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("SWANLAB_MODE", "disabled")

SHAPE_CHECKED = [
    f"{package}.{layer}"
    for package in ("jaxllada", "npu_backend")
    for layer in ("models", "diffusion", "sampling")
]

if os.environ.get("JAXLLADA_TEST_SHAPES", "1") != "0":
    import jaxtyping

    jaxtyping.install_import_hook(SHAPE_CHECKED, "beartype.beartype")


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory, monkeypatch):
    """Keeps tests away from the user's caches and from each other's."""
    monkeypatch.setenv("JAXLLADA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _batches_shrink_at_once(monkeypatch):
    """Runs of tests are too short to be worth a batch of another size."""
    monkeypatch.setattr("jaxllada.common.sizing.LEAST_SAVING", 0)


@pytest.fixture(scope="session")
def sharp(tmp_path_factory):
    """A model folder whose confidences are spread, as those of a trained model are."""
    from tests.jax.golden import DENSE
    from tests.sharp_model import write_sharp

    return write_sharp(DENSE, tmp_path_factory.mktemp("golden") / "sharp")


def pytest_collection_modifyitems(items):
    """Files with more of the slow tests come first, so that no process is left with one at the end.

    Processes get whole files in this order (`--dist loadfile --no-loadscope-reorder`).
    """
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
    if os.environ.get("XLA_FLAGS") == QUICK:
        # The older emitters take bfloat16 through float32, which changes the bits of NaNs.
        reason = "run by contracts/test_compiler.py, with XLA's own kernels"
        for item in items:
            if item.get_closest_marker("own_kernels"):
                item.add_marker(pytest.mark.skip(reason))
