"""The predicted memory of a JAX training step against XLA's own analysis of the compiled step."""

import dataclasses
import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.presets import PRESETS
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.plan.setup import Setup, setup_of
from jaxllada.common.plan.xla import kept_of_a_block, xla_footprint
from jaxllada.models.block import Block
from jaxllada.models.rope import rotation
from jaxllada.train.footprint import compiled_memory

ROOT = Path(__file__).parents[2]
CASES = {
    "100M": ("llada-100m", {"max_length": 512, "per_device_train_batch_size": 4}),
    "100M, everything recomputed": (
        "llada-100m",
        {"max_length": 1024, "per_device_train_batch_size": 16, "remat": "full"},
    ),
    "100M, accumulating, with an average and short rows": (
        "llada-100m",
        {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 4,
            "ema_decay": 0.99,
            "random_length_ratio": 0.01,
        },
    ),
    "1B, products kept": ("llada-1b", {"remat": "dots", "per_device_train_batch_size": 4}),
    "adapters of 100M": ("llada-100m", {"lora": True, "max_length": 512, "lora_dropout": 0.0}),
    "adapters of 1B, with dropout, everything recomputed": (
        "llada-1b",
        {"lora": True, "remat": "full", "per_device_train_batch_size": 2, "max_length": 2048},
    ),
    "1B, scores recomputed": ("llada-1b", {"remat": "attention", "max_length": 2048}),
}
MESHES = {
    "8B over 8": (
        "llada-8b",
        {"max_length": 4096, "remat": "full", "per_device_train_batch_size": 1, "mesh_fsdp": 8},
    ),
    "8B over 8, short rows": (
        "llada-8b",
        {
            "max_length": 4096,
            "gradient_checkpointing": True,
            "per_device_train_batch_size": 1,
            "mesh_fsdp": 8,
            "random_length_ratio": 0.01,
        },
    ),
    "8B, two copies over 4": (
        "llada-8b",
        {"max_length": 2048, "remat": "dots", "per_device_train_batch_size": 1, "mesh_fsdp": 4},
    ),
    "8B, split both ways": (
        "llada-8b",
        {"max_length": 1024, "remat": "full", "mesh_fsdp": 2, "mesh_tensor": 4},
    ),
}


def config_of(values: dict) -> TrainConfig:
    return TrainConfig(**({"random_length_ratio": 0.0} | values))


def predicted(name: str, values: dict, devices: int) -> int:
    return xla_footprint(setup_of(config_of(values), PRESETS[name], devices), "cpu").total


@pytest.mark.parametrize("case", CASES)
def test_the_prediction_is_within_a_tenth_of_the_compiled_step(case):
    name, values = CASES[case]
    compiled = compiled_memory(config_of(values), PRESETS[name], jax.devices()[:1])
    assert predicted(name, values, 1) == pytest.approx(compiled.total, rel=0.1)


@pytest.mark.slow
def test_so_it_is_on_a_mesh():
    """Compiled for 8 virtual devices in a process of its own."""
    program = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from jaxllada.common.config.presets import PRESETS
from jaxllada.common.config.train import TrainConfig
from jaxllada.train.footprint import compiled_memory
for name, values in json.loads(sys.argv[1]):
    found = compiled_memory(TrainConfig(**values), PRESETS[name])
    print(found.total, flush=True)
"""
    cases = [(name, {"random_length_ratio": 0.0} | values) for name, values in MESHES.values()]
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(cases)],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=True,
    )  # fmt: skip
    for (name, values), total in zip(cases, map(int, done.stdout.split()), strict=True):
        assert predicted(name, values, 8) == pytest.approx(total, rel=0.1), (name, values)


VARIANTS = {
    "llama": {},
    "relu": {"activation_type": "relu"},
    "sequential": {"block_type": "sequential", "activation_type": "gelu"},
    "swiglu": {"block_type": "sequential", "activation_type": "swiglu"},
    "norms of queries and keys": {"attention_layer_norm": True},
    "layer norm": {"layer_norm_type": "default"},
    "norms without weights": {"layer_norm_with_affine": False},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_block_keeps_is_what_its_derivative_holds(variant, dtype):
    """`jax.vjp` returns everything kept, among it the weights, which stay where they are."""
    shape = {"d_model": 256, "n_heads": 8, "n_kv_heads": 2, "mlp_hidden_size": 768}
    model = dataclasses.replace(PRESETS["llada-1b"], n_layers=1, **shape, **VARIANTS[variant])
    compute = ComputeConfig(dtype=dtype)
    turn = rotation(jnp.arange(64)[None], model.head_dim, model.rope_theta)

    def kept(rows: int) -> int:
        def run(block, x):
            return jax.vjp(lambda block, x: block(x, turn), block, x)[1]

        make = functools.partial(Block, model, compute, layer=0, key=jax.random.key(0))
        x = jax.ShapeDtypeStruct((rows, 64, model.d_model), dtype)
        pullback = jax.eval_shape(lambda x: run(make(), x), x)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))

    def formula(rows: int) -> float:
        return kept_of_a_block(Setup(model=model, rows=rows, length=64, dtype=dtype))

    # The difference of two batches leaves the weights out; sums of a row (a thirtieth) are too.
    assert formula(6) - formula(2) == pytest.approx(kept(6) - kept(2), rel=0.04)


def test_a_mesh_that_is_not_here_is_refused_before_compiling():
    config = config_of({"mesh_fsdp": 3})
    with pytest.raises(ValueError, match="mesh_fsdp=3"):
        compiled_memory(config, PRESETS["tiny"], jax.devices()[:1])


def test_the_verb_compiles_for_devices_that_are_not_here():
    """Four virtual ones; XLA's own figure is printed beside the prediction."""
    words = "--model_name_or_path tiny --max_length 64 --mesh_fsdp 4 --devices 4 --accelerator cpu"
    done = subprocess.run(
        [sys.executable, "-m", "jaxllada", "plan", *words.split(), "--compile", "--memory", "8"],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    assert "compiled for 4 x cpu" in done.stdout
    assert "as configured: data 1 x fsdp 4" in done.stdout


@pytest.mark.slow
def test_the_prediction_for_tpus_is_within_a_tenth_of_steps_compiled_for_them():
    """libtpu compiles for a topology without any TPU; skipped where it is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu, which compiles for TPUs that are not here")
    program = """
import json, sys
from jax.experimental import topologies
from jaxllada.common.config.presets import PRESETS
from jaxllada.common.config.train import TrainConfig
from jaxllada.train.footprint import compiled_memory
devices = topologies.get_topology_desc("v5:2x2x2", "tpu").devices
for name, values in json.loads(sys.argv[1]):
    print(compiled_memory(TrainConfig(**values), PRESETS[name], devices).total, flush=True)
"""
    cases = [
        ("llada-8b", {"mesh_fsdp": 8, "remat": "full", "per_device_train_batch_size": rows})
        for rows in (1, 4)
    ]
    cases = [(n, v | {"bf16": True, "max_length": 4096}) for n, v in cases]
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(cases)],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=True,
        env={**os.environ, "TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    for (name, values), total in zip(cases, map(int, done.stdout.split()), strict=True):
        setup = setup_of(TrainConfig(**values), PRESETS[name], 8)
        assert xla_footprint(setup, "tpu").total == pytest.approx(total, rel=0.1), values
