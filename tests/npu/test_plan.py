"""The predicted memory of a torch training step against torch_npu's own allocator.

The real step runs twice on the simulated device without computing anything (`dry_memory.py`), with
the other ranks played by torch's fake backend.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxllada.common.config.train import TrainConfig
from jaxllada.common.plan.eager import eager_footprint
from jaxllada.common.plan.setup import setup_of

ROOT = Path(__file__).parents[2]
EIGHT = {"max_length": 4096, "bf16": True, "random_length_ratio": 0.01}
SPLIT = EIGHT | {"mesh_fsdp": 8, "gradient_checkpointing": True}
LORA = {"lora": True, "r": 64, "bf16": True, "param_dtype": "bfloat16", "max_length": 4096}
SHORT = {"preset": "llada-8b", "changes": {"n_layers": 8}}
CASES = {
    "100M, float32": {"model": "llada-100m", "train": {"max_length": 1024}},
    "100M, plain kernels, accumulating": {
        "model": "llada-100m",
        "train": {"bf16": True, "gradient_accumulation_steps": 2, "ema_decay": 0.99},
        "fused": False,
    },
    "1B, everything recomputed": {
        "model": "llada-1b",
        "train": {"bf16": True, "gradient_checkpointing": True, "max_length": 2048},
    },
    "1B, products kept, copied on 8": {
        "model": "llada-1b",
        "train": {"bf16": True, "remat": "dots", "per_device_train_batch_size": 2},
        "devices": 8,
    },
    "8B on 8": {
        "model": "llada-8b",
        "train": SPLIT | {"per_device_train_batch_size": 1},
        "devices": 8,
    },
    "8B on 8, four rows": {
        "model": "llada-8b",
        "train": SPLIT | {"per_device_train_batch_size": 4},
        "devices": 8,
    },
    "8B on 16, nothing recomputed": {
        "model": "llada-8b",
        "train": EIGHT | {"mesh_fsdp": 8, "per_device_train_batch_size": 1},
        "devices": 16,
    },
    "8B on 4": {
        "model": "llada-8b",
        "train": SPLIT | {"mesh_fsdp": 4, "per_device_train_batch_size": 1},
        "devices": 4,
    },
    "adapters of 8B, 8 layers": {
        "model": SHORT,
        "train": LORA | {"per_device_train_batch_size": 1},
    },
    "adapters of 8B, 8 layers, recomputed on 4": {
        "model": SHORT,
        "train": LORA | {"per_device_train_batch_size": 2, "remat": "full", "mesh_fsdp": 4},
        "devices": 4,
    },
}

simulated = pytest.mark.skipif(
    os.environ.get("NPU_SIM") != "1" or importlib.util.find_spec("torch_npu") is None,
    reason="needs torch_npu and the simulator: NPU_SIM=1 in .venv-npu (launch/test.sh)",
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict[str, dict]:
    """What the allocator counted in each case."""
    file = tmp_path_factory.mktemp("plan") / "cases.json"
    file.write_text(json.dumps(list(CASES.values())))
    environment = {"CANN_STUB_HBM_GB": "400", "CANN_STUB_DEVICES": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.npu.dry_memory", file],
        env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(CASES), done.stderr[-3000:]
    return dict(zip(CASES, lines, strict=True))


@simulated
@pytest.mark.npu
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_prediction_is_within_a_tenth_of_the_allocator(name, measured):
    from tests.npu.dry_memory import model_of

    case = CASES[name]
    config = TrainConfig(**case["train"])
    setup = setup_of(config, model_of(case["model"]), case.get("devices", 1))
    predicted = eager_footprint(setup, fused=case.get("fused", True))
    assert predicted.total == pytest.approx(measured[name]["allocated"], rel=0.1)
    # What the allocator holds can only be more than what was asked of it.
    assert measured[name]["reserved"] >= measured[name]["allocated"]
