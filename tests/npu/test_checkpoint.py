"""Torch checkpoints come back bit for bit and are model folders; damaged ones are passed over."""

import dataclasses

import pytest
import torch

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.errors import UserError
from jaxllada.common.manifest import fault
from jaxllada.common.weights.opening import open_folder
from npu_backend.convert import stored_tensor
from npu_backend.models.names import placements
from npu_backend.sharding import Mesh
from npu_backend.train.checkpoint import Checkpoints
from npu_backend.train.start import make_network, set_random_weights
from npu_backend.train.state import initial_state
from tests.npu.tiny_run import DEVICE, TINY

MESH = Mesh(DEVICE)
# Tied weights, and queries, keys and values stored as one tensor.
FUSED = dataclasses.replace(
    TINY, block_type="sequential", activation_type="swiglu", weight_tying=True, include_bias=True
)


def some_state(seed=0, *, config=TINY, dtype="float32", with_ema=False):
    network, _ = make_network(config, ComputeConfig(param_dtype=dtype), MESH)
    set_random_weights(network, MESH, seed=seed)
    state = initial_state(network, with_ema=with_ema)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensors in filter(None, (state.mu, state.nu, state.ema)):
            for tensor in tensors.values():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return dataclasses.replace(state, step=seed, count=seed + 1, skipped_total=3)


def values(state):
    tensors = {"params": state.params, "mu": state.mu, "nu": state.nu, "ema": state.ema or {}}
    named = {(k, n): t.detach().cpu().clone() for k, g in tensors.items() for n, t in g.items()}
    return named | {k: getattr(state, k) for k in ("step", "count", "skipped", "skipped_total")}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(b[key])), key


@pytest.fixture
def open_checkpoints(tmp_path):
    opened = []

    def open_them(config=TINY, **settings):
        opened.append(Checkpoints(tmp_path / "checkpoints", **settings))
        opened[-1].place(MESH, config)
        return opened[-1]

    yield open_them
    for checkpoints in opened:
        checkpoints.close()


@pytest.mark.parametrize("with_ema", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [TINY, FUSED], ids=["tiny", "fused"])
def test_a_state_comes_back_bit_for_bit(open_checkpoints, config, dtype, with_ema):
    checkpoints = open_checkpoints(config)
    state = some_state(4, config=config, dtype=dtype, with_ema=with_ema)
    checkpoints.save(4, state, {"guard": {"lr_scale": 0.5}}, metric=1.25)
    checkpoints.wait()
    again = open_checkpoints(config)
    assert again.latest() == 4
    assert again.meta(4) == {"guard": {"lr_scale": 0.5}, "step": 4, "metric": 1.25}
    like = some_state(9, config=config, dtype=dtype, with_ema=with_ema)
    assert_same(values(again.restore(4, like)), values(state))


@pytest.mark.parametrize("with_ema", [True, False])
def test_a_checkpoint_is_a_model_folder(open_checkpoints, with_ema):
    """With the average where one is kept, as it was evaluated and sampled from."""
    checkpoints = open_checkpoints()
    state = some_state(1, with_ema=with_ema)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    source = open_folder(checkpoints.folder / "1")
    assert source.config == TINY
    for name, entry, layer in placements(source.config):
        expected = (state.ema or state.params)[name].detach().cpu()
        assert torch.equal(stored_tensor(source, entry, layer), expected), name


def test_a_state_may_change_as_soon_as_save_returns(open_checkpoints):
    checkpoints = open_checkpoints()
    state = some_state(1, with_ema=True)
    expected = values(state)
    checkpoints.save(1, state, {})
    with torch.no_grad():
        for tensors in (state.params, state.mu, state.nu, state.ema):
            for tensor in tensors.values():
                tensor.fill_(-1)
    checkpoints.wait()
    assert_same(values(checkpoints.restore(1, state)), expected)


def test_many_files_are_one_model(open_checkpoints, monkeypatch):
    monkeypatch.setattr("npu_backend.train.checkpoint._SHARD_BYTES", 10_000)
    checkpoints = open_checkpoints()
    state = some_state(1)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    assert len(list((checkpoints.folder / "1").glob("model-*.safetensors"))) > 3
    assert_same(values(checkpoints.restore(1, some_state(2))), values(state))


def test_the_newest_and_the_best_are_kept(open_checkpoints):
    checkpoints = open_checkpoints(keep=2, keep_best=True)
    for step, metric in [(1, 5.0), (2, 3.0), (3, None), (4, 4.0), (5, 3.5), (6, None)]:
        checkpoints.save(step, some_state(step), {}, metric)
    checkpoints.wait()
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["2", "5", "6"]


def test_damaged_and_unfinished_checkpoints_are_passed_over(open_checkpoints, capsys):
    checkpoints = open_checkpoints()
    for step in (1, 2, 3):
        checkpoints.save(step, some_state(step), {})
    checkpoints.wait()
    (checkpoints.folder / "3" / "manifest.json").unlink()
    largest = max(
        (path for path in (checkpoints.folder / "2" / "state").iterdir()),
        key=lambda path: path.stat().st_size,
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    assert checkpoints.latest() == 1
    told = capsys.readouterr().err
    assert "/3: incomplete" in told
    assert "/2: damaged" in told


def test_what_a_killed_run_left_is_no_checkpoint_and_is_removed(open_checkpoints):
    checkpoints = open_checkpoints()
    left = checkpoints.folder / ".7.partial"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    assert checkpoints.latest() is None
    checkpoints.save(8, some_state(8), {})
    checkpoints.wait()
    assert [path.name for path in checkpoints.folder.iterdir()] == ["8"]
    assert not fault(checkpoints.folder / "8")


def test_a_checkpoint_of_another_shape_is_refused_in_one_line(open_checkpoints):
    checkpoints = open_checkpoints()
    checkpoints.save(1, some_state(1), {})
    checkpoints.wait()
    with pytest.raises(UserError, match="does not fit this run") as caught:
        checkpoints.restore(1, some_state(1, with_ema=True))
    assert "\n" not in str(caught.value)


def test_a_failing_write_is_raised_at_the_next_wait(open_checkpoints, monkeypatch):
    checkpoints = open_checkpoints()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("npu_backend.train.checkpoint.shards.write_shards", full_disk)
    checkpoints.save(1, some_state(1), {})
    with pytest.raises(OSError, match="No space left"):
        checkpoints.wait()
    assert checkpoints.latest() is None
