"""The mesh changes where numbers are computed, not which: 8 virtual devices equal one."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from jaxllada.common.config.presets import PRESETS
from jaxllada.common.errors import UserError
from jaxllada.models.family import abstract_model
from jaxllada.sharding import (
    check_divides,
    global_batch,
    initialize_distributed,
    make_mesh,
    process_share,
    shardings,
    spec_of,
)
from jaxllada.train.optim import path_names
from tests.jax.tiny_run import (
    DROPPING,
    Interrupting,
    losses,
    make_config,
    make_task,
    read_log,
    run_training,
)

ROOT = Path(__file__).parents[2]


def on_eight_devices(program, *arguments, timeout=280):
    """Runs a program in a process with 8 CPU devices and returns what it printed."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    cache = {"JAX_COMPILATION_CACHE_DIR": os.environ["JAXLLADA_CACHE"]}
    cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        env={**os.environ, **cache, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}, cwd=ROOT,
        capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


MESHES = {
    "data": {"mesh_data": 8, "per_device_train_batch_size": 2},
    "fsdp": {"mesh_data": 1, "mesh_fsdp": 8, "per_device_train_batch_size": 2},
    "all": {"mesh_data": 2, "mesh_fsdp": 2, "mesh_tensor": 2, "per_device_train_batch_size": 4},
}  # fmt: skip
SETTINGS = {
    "max_steps": 8, "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4,
    "per_device_eval_batch_size": 2, "ema_decay": 0.9, "random_length_ratio": 1.0,
}  # fmt: skip


@pytest.mark.slow
def test_a_mesh_gives_the_losses_of_one_device(tmp_path):
    """Also for a run that one device began and 8 devices continue."""
    whole = {"per_device_train_batch_size": 16, **SETTINGS}
    run_training(make_config(tmp_path / "one", **whole), DROPPING)
    begun = make_config(tmp_path / "moved", **whole)
    source = Interrupting(make_task(begun, DROPPING).source, at=6)
    assert run_training(begun, DROPPING, source=source).signal
    assert max(losses(tmp_path / "moved")) < 8
    runs = {**MESHES, "moved": MESHES["data"] | {"resume": "auto"}}
    on_eight_devices(
        """
        import json, sys
        from tests.jax.tiny_run import DROPPING, make_config, run_training
        for name, changes in json.loads(sys.argv[2]).items():
            run_training(make_config(sys.argv[1] + "/" + name, **changes), DROPPING)
        """,
        tmp_path,
        json.dumps({name: SETTINGS | changes for name, changes in runs.items()}),
    )
    expected = losses(tmp_path / "one")
    bounds = [row["eval_bound"] for row in read_log(tmp_path / "one") if "eval_bound" in row]
    assert len(expected) == 8
    assert len(bounds) == 3
    for name in runs:
        # Float32 sums in another order, carried through 8 updates.
        got = losses(tmp_path / name)
        assert list(got) == list(expected)
        np.testing.assert_allclose(
            list(got.values()), list(expected.values()), rtol=2e-4, err_msg=name
        )
        measured = [row["eval_bound"] for row in read_log(tmp_path / name) if "eval_bound" in row]
        np.testing.assert_allclose(measured, bounds, rtol=2e-4, err_msg=name)


def test_every_large_weight_is_split_by_both_axes():
    """No matrix may be left whole on every device: that is what fsdp and tensor are for."""
    params = nnx.to_pure_dict(nnx.state(abstract_model(PRESETS["llada-1b"]), nnx.Param))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = path_names(path)
        spec = spec_of(names, leaf.ndim)
        if leaf.size > 10_000_000:
            assert {"fsdp", "tensor"} <= set(spec), names
        if names[0] == "blocks":
            assert not spec or spec[0] is None, names


@pytest.mark.parametrize(
    ("names", "ndim", "spec"),
    [
        (("wte",), 2, P("tensor", "fsdp")),
        (("ff_out", "weight"), 2, P("tensor", "fsdp")),
        (("blocks", "mlp", "ff_out", "kernel"), 3, P(None, "tensor", "fsdp")),
        (("blocks", "attention", "q_proj", "kernel"), 3, P(None, "fsdp", "tensor")),
        (("1", "mu", "blocks", "attention", "attn_out", "kernel"), 3, P(None, "tensor", "fsdp")),
        (("blocks", "attn_norm", "weight"), 2, P()),
        (("blocks", "attention", "q_proj", "bias"), 2, P()),
        (("1", "count"), 0, P()),
    ],
)
def test_weights_and_their_moments_are_placed_by_name(names, ndim, spec):
    assert spec_of(names, ndim) == spec


@pytest.mark.parametrize(
    "axes", [{"data": 2}, {"fsdp": 2}, {"tensor": 3}, {"data": 4, "fsdp": 2, "tensor": 1}]
)
def test_a_mesh_that_does_not_fill_the_devices_is_refused(axes):
    with pytest.raises(UserError, match=r"mesh_data=.* does not fill the 1 devices"):
        make_mesh(**axes)


@pytest.mark.parametrize(
    ("axis", "key"), [("tensor", "n_kv_heads=2"), ("fsdp", "d_model=32")]
)  # fmt: skip
def test_a_mesh_that_does_not_divide_the_widths_is_refused(axis, key):
    class Shape:
        shape = {"data": 1, "fsdp": 1, "tensor": 1} | {axis: 4 if axis == "tensor" else 5}

    with pytest.raises(UserError, match=f"mesh_{axis}=.*: does not divide {key}"):
        check_divides(Shape(), PRESETS["tiny"])  # pyright: ignore[reportArgumentType]


def test_one_process_feeds_everything():
    mesh = make_mesh()
    assert process_share(mesh) == (0, 1)
    local = np.arange(24).reshape(2, 3, 4)
    placed = global_batch(mesh, (local, None), axis=1)
    assert placed[1] is None
    np.testing.assert_array_equal(placed[0], local)
    assert shardings(mesh, {"wte": local})["wte"].spec == P(None, "tensor", "fsdp")


@pytest.mark.parametrize("flags", [("", 2, 0), ("localhost:1234", 2, -1), ("localhost:1234", 2, 2)])
def test_processes_need_an_address_and_a_number(flags):
    with pytest.raises(UserError, match="num_processes=2: give coordinator_address"):
        initialize_distributed(*flags)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """Two processes with one device each, joined by jax.distributed; they also resume together."""
    program = """
        import dataclasses, sys
        from jaxllada.sharding import initialize_distributed
        initialize_distributed("localhost:" + sys.argv[2], 2, int(sys.argv[3]))
        from tests.jax.tiny_run import make_config, run_training
        config = make_config(
            sys.argv[1], mesh_fsdp=2, per_device_train_batch_size=2, max_steps=4, save_steps=2,
            gradient_accumulation_steps=2, random_length_ratio=0, lr_scheduler_type="constant")
        assert run_training(config).step == 4
        longer = dataclasses.replace(config, resume="auto", max_steps=6)
        assert run_training(longer).step == 6
    """
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "two"), port]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    both = [
        subprocess.Popen(
            [*command, str(i)], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=200)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], told
    settings = {"lr_scheduler_type": "constant", "random_length_ratio": 0, "max_steps": 6}
    run_training(make_config(tmp_path / "one", **settings))
    got, expected = losses(tmp_path / "two"), losses(tmp_path / "one")
    np.testing.assert_allclose(list(got.values()), list(expected.values()), rtol=1e-4)
    assert (tmp_path / "two" / "checkpoints" / "6" / "manifest.json").is_file()
