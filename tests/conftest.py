"""Settings of every test: CPU, annotated shapes checked, random keys used once.

They are set here, before anything imports JAX. `JAXLLADA_TEST_SHAPES=0` runs without the checker,
`JAX_PLATFORMS=cuda` on a GPU.
"""

import os

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DEBUG_KEY_REUSE", "1")
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
