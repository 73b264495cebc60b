"""Checkpoints come back bit for bit, on any mesh; damaged ones are named and passed over."""

import dataclasses
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllada.common.config.train import TrainConfig
from jaxllada.common.errors import UserError
from jaxllada.train.checkpoint import Checkpoints
from jaxllada.train.optim import make_optimizer
from jaxllada.train.state import initial_state


def some_state(seed=0, *, dtype=jnp.float32, with_ema=True, width=16):
    keys = jax.random.split(jax.random.key(seed), 2)
    params = {
        "wte": jax.random.normal(keys[0], (width, 8)).astype(dtype),
        "blocks": {"ln": {"weight": jax.random.normal(keys[1], (2, 8)).astype(dtype)}},
    }
    state = initial_state(params, make_optimizer(TrainConfig()), with_ema=with_ema)
    return dataclasses.replace(state, step=jnp.int32(seed), skipped_total=jnp.int32(3))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture
def open_checkpoints(tmp_path):
    opened = []

    def open_them(**settings):
        opened.append(Checkpoints(tmp_path / "checkpoints", **settings))
        return opened[-1]

    yield open_them
    for checkpoints in opened:
        checkpoints.close()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("with_ema", [True, False])
def test_a_state_comes_back_bit_for_bit(open_checkpoints, dtype, with_ema):
    checkpoints = open_checkpoints()
    state = some_state(4, dtype=dtype, with_ema=with_ema)
    checkpoints.save(4, state, {"guard": {"lr_scale": 0.5}}, metric=1.25)
    checkpoints.wait()
    again = open_checkpoints()
    assert again.latest() == 4
    assert again.meta(4) == {"guard": {"lr_scale": 0.5}, "step": 4, "metric": 1.25}
    assert_same(again.restore(4, some_state(9, dtype=dtype, with_ema=with_ema)), state)


def test_a_state_may_be_donated_as_soon_as_save_returns(open_checkpoints):
    checkpoints = open_checkpoints()
    state = some_state(1, width=200_000)
    expected = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda leaf: leaf * 0 - 1, s), donate_argnums=0)
    checkpoints.save(1, state, {})
    for _ in range(3):
        state = overwrite(state)
    checkpoints.wait()
    assert_same(checkpoints.restore(1, state), expected)


def test_the_newest_and_the_best_are_kept(open_checkpoints):
    checkpoints = open_checkpoints(keep=2, keep_best=True)
    for step, metric in [(1, 5.0), (2, 3.0), (3, None), (4, 4.0), (5, 3.5), (6, None)]:
        checkpoints.save(step, some_state(step), {}, metric)
    checkpoints.wait()
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["2", "5", "6"]
    everything = open_checkpoints(keep=0)
    everything.save(7, some_state(7), {})
    everything.wait()
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["2", "5", "6", "7"]


def test_damaged_and_incomplete_checkpoints_are_named_and_skipped(open_checkpoints, capsys):
    checkpoints = open_checkpoints()
    for step in (1, 2, 3):
        checkpoints.save(step, some_state(step), {})
    checkpoints.wait()
    (checkpoints.folder / "3" / "manifest.json").unlink()
    files = [path for path in (checkpoints.folder / "2").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    assert checkpoints.latest() == 1
    told = capsys.readouterr().err.splitlines()
    assert "/3: incomplete" in told[0]
    assert "/2: damaged" in told[1]


def test_writing_a_step_again_replaces_it(open_checkpoints):
    checkpoints = open_checkpoints()
    checkpoints.save(5, some_state(1), {"try": 1})
    checkpoints.save(5, some_state(2), {"try": 2})
    checkpoints.wait()
    assert checkpoints.meta(5)["try"] == 2
    assert_same(checkpoints.restore(5, some_state()), some_state(2))


def test_later_checkpoints_are_set_aside_not_lost(open_checkpoints):
    checkpoints = open_checkpoints()
    for step in (1, 2, 3):
        checkpoints.save(step, some_state(step), {})
    checkpoints.wait()
    checkpoints.set_aside_after(1)
    assert checkpoints.latest() == 1
    names = {path.name for path in checkpoints.folder.iterdir()}
    assert names == {"1", "2.before-return-to-1", "3.before-return-to-1"}


def test_a_checkpoint_of_another_shape_is_refused_in_one_line(open_checkpoints):
    checkpoints = open_checkpoints()
    checkpoints.save(1, some_state(1, with_ema=False), {})
    checkpoints.wait()
    with pytest.raises(UserError, match="does not fit this run") as caught:
        checkpoints.restore(1, some_state(1, with_ema=True))
    assert "\n" not in str(caught.value)


def test_a_failing_write_is_raised_at_the_next_wait(open_checkpoints, monkeypatch, capsys):
    checkpoints = open_checkpoints()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxllada.common.run.checkpoints.write_manifest", full_disk)
    checkpoints.save(1, some_state(1), {})
    with pytest.raises(OSError, match="No space left"):
        checkpoints.wait()
    assert checkpoints.latest() is None
    assert "incomplete" in capsys.readouterr().err


def test_a_checkpoint_moves_to_another_mesh(open_checkpoints):
    checkpoints = open_checkpoints()
    checkpoints.save(1, some_state(1), {})
    checkpoints.wait()
    program = f"""
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec as P
        from jaxllada.sharding import make_mesh, shardings
        from jaxllada.train.checkpoint import Checkpoints
        from tests.jax.test_checkpoint import some_state
        mesh = make_mesh(2, 2, 2)
        state = some_state(1)
        like = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            state, shardings(mesh, state))
        got = Checkpoints({str(checkpoints.folder)!r}).restore(1, like)
        assert got.params["wte"].sharding.spec == P("tensor", "fsdp"), got.params["wte"].sharding
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), got, state)
        print("moved")
    """
    # The same compiler as here: the states are drawn twice and compared to the bit.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "moved", done.stderr
