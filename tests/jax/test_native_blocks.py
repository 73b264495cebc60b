"""The C++ kernel of all blocks against blocks in float64."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllada.models import packed
from jaxllada.models.block import run_blocks
from jaxllada.models.kept import Region
from jaxllada.models.packed import pack
from jaxllada.native import build
from tests.jax.packed_models import (
    Blocks,
    close,
    computed,
    error,
    half,
    inputs,
    make,
    oracle,
    turned_on,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(build._compiler() is None, reason="there is no C++ compiler"),
]


@pytest.fixture(autouse=True)
def kernel(monkeypatch):
    yield from turned_on(monkeypatch)


def outliers(model, x, kind):
    """Makes one channel 300 times the others, as it is in trained models."""
    linear, norms = packed._layers(model.blocks), (model.blocks.attn_norm, model.blocks.ff_norm)
    if kind != "none":
        x = x.at[:, :, 5].multiply(300)
    if kind == "undone by the norms":
        for norm in norms:
            norm.weight[...] = norm.weight[...].at[:, 5].divide(300)
    if kind == "and in weights":
        for layer in (linear[2], linear[5], linear[6]):
            layer.kernel[...] = layer.kernel[...].at[:, 5].multiply(300)
    return x


KINDS = ["none", "of what goes in", "undone by the norms", "and in weights"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "most"), [("float32", 3), ("bfloat16", 1.5)])
def test_products_are_as_close_to_float64_as_those_of_xla(dtype, most, kind):
    model = make(dtype=dtype, d_model=128, n_kv_heads=4, mlp_hidden_size=320)
    x, positions = inputs(model, 2, 60)
    x = outliers(model, x, kind)
    turn, expected = model.rotation(positions), oracle(model, x, positions)
    plain = jax.jit(lambda *given: run_blocks(*given, None, remat="none", window=None, key=None))
    own = error(computed(model, x, positions), expected)
    of_xla = error(plain(model.blocks, x, turn, None), expected)
    assert own < most * of_xla


def test_a_large_weight_of_a_small_input_costs_others_no_more_than_its_size():
    """Numbers of a row or column share a scale: eight bits of 24 are not there for the others."""
    model = make(d_model=128, n_kv_heads=4, mlp_hidden_size=320)
    x, positions = inputs(model, 2, 60)
    for kind in KINDS[2:]:
        x = outliers(model, x, kind)
    assert error(computed(model, x, positions), oracle(model, x, positions)) < 300 * 2.0**-23


def test_a_large_activation_costs_others_nothing():
    """Activations have a byte more than weights for that."""
    model = make(d_model=128, n_kv_heads=4, mlp_hidden_size=320, n_layers=1)
    up, down = model.blocks.mlp.up_proj, model.blocks.mlp.ff_out
    up.kernel[...] = up.kernel[...].at[:, :, 7].multiply(40)
    down.kernel[...] = down.kernel[...].at[:, 7].divide(40)
    x, positions = inputs(model, 2, 60)
    turn, expected = model.rotation(positions), oracle(model, x, positions)
    plain = jax.jit(lambda *given: run_blocks(*given, None, remat="none", window=None, key=None))
    own = error(computed(model, x, positions), expected)
    assert own < 2 * error(plain(model.blocks, x, turn, None), expected)


def test_bfloat16_is_rounded_where_blocks_round():
    model = make(dtype="bfloat16", n_layers=1)
    x, positions = inputs(model, 3, 60)
    expected = Blocks(model, 60, 3, half).run(x, positions)
    found = np.asarray(computed(model, x, positions)).astype(np.float64)
    # Sums in another order are seldom on the other side of a middle, and then one step away.
    assert np.mean(found == expected) > 0.95


SHAPES = {
    "one of all": (1, 1, {"d_model": 8, "n_heads": 1, "n_kv_heads": 1, "mlp_hidden_size": 3}),
    "one layer": (2, 37, {"n_layers": 1}),
    "no whole vectors": (3, 37, {"d_model": 40, "n_kv_heads": 1, "mlp_hidden_size": 50}),
    "heads of twenty": (1, 5, {"d_model": 40, "n_heads": 2, "mlp_hidden_size": 100}),
    "heads of two": (2, 100, {"d_model": 8, "n_kv_heads": 4, "mlp_hidden_size": 129}),
    "whole tiles": (3, 16, {"d_model": 64, "n_kv_heads": 4, "mlp_hidden_size": 128}),
    "many rows": (3, 100, {"d_model": 96, "n_heads": 6, "n_layers": 3, "mlp_hidden_size": 65}),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_blocks_of_any_shape_are_those_of_float64(shape):
    rows, length, changes = shape
    model = make(**changes)
    x, positions = inputs(model, rows, length)
    expected = oracle(model, x, positions)
    close(computed(model, x, positions), expected)
    model = make(dtype="bfloat16", **changes)
    x = x.astype(jnp.bfloat16)
    # Half a unit in the last place is 0.002, and there are some roundings in a row.
    assert error(computed(model, x, positions), oracle(model, x, positions)) < 0.02


@pytest.mark.parametrize("size", [1, 5, 32, 36])
def test_a_window_is_its_rows_at_every_place(size):
    model = make()
    x, positions = inputs(model, 2, 37)
    expected, turn = oracle(model, x, positions), model.rotation(positions)
    run = jax.jit(lambda blocks, start: blocks.run(x, turn, None, window=(start, size))[0])
    blocks = pack(model)
    for start in range(0, 37 - size + 1):
        close(run(blocks, jnp.int32(start)), expected[:, start : start + size])


@pytest.mark.parametrize("changes", [{}, {"d_model": 40, "n_kv_heads": 1, "input_emb_norm": True}])
def test_hidden_rows_are_those_of_single_blocks(changes):
    model = make(**changes)
    tokens = np.random.default_rng(0).integers(0, 100, (3, 21)).astype(np.int32)
    seen = np.arange(21) >= np.array([[0], [4], [9]])

    @jax.jit
    def hidden(blocks):
        return model.hidden(tokens, seen, window=(7, 11), blocks=blocks)

    close(hidden(pack(model)), hidden(model.unstacked()))


def block_causal(length, size):
    place = np.arange(length) // size
    return (place <= place[:, None])[None, None]


MASKS = {
    "padding on both sides": (np.arange(37) >= [[0], [5], [30]])[:, None, None]
    & (np.arange(37) < [[37], [33], [31]])[:, None, None],
    "no later block": block_causal(37, 8),
    "neither": block_causal(37, 8) & (np.arange(37) >= [[0], [5], [30]])[:, None, None],
    "the same for all rows": (np.arange(37) % 3 > 0)[None, None, None],
    "any": np.random.default_rng(0).random((3, 1, 37, 37)) < 0.1,
}


@pytest.mark.parametrize("visible", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("window", [None, (19, 7)])
def test_queries_see_what_is_visible(visible, window):
    model = make()
    x, positions = inputs(model, 3, 37)
    expected = oracle(model, x, positions, visible, window=window)
    close(computed(model, x, positions, visible, window=window), expected)


def test_a_query_that_sees_nothing_gets_an_average():
    model = make()
    x, positions = inputs(model, 2, 20)
    visible = np.ones((2, 1, 20, 20), bool)
    visible[0, 0, 3] = visible[1, 0, 7:] = False
    found = computed(model, x, positions, visible)
    assert np.isfinite(found).all()
    close(found, oracle(model, x, positions, visible))
    visible = np.array([True, False])[:, None, None, None] & np.ones((1, 1, 1, 20), bool)
    close(computed(model, x, positions, visible), oracle(model, x, positions, visible))


LENGTH = 29
TOKENS = np.random.default_rng(0).integers(0, 100, (2, LENGTH)).astype(np.int32)
SEEN = jnp.arange(LENGTH) >= jnp.array([0, 3])[:, None, None, None]
PLACES = np.maximum(np.arange(LENGTH) - [[0], [3]], 0)


@pytest.mark.parametrize("size", [1, 8, 17])
def test_a_region_reads_and_keeps_what_single_blocks_do(size):
    model = make(d_model=40)

    @jax.jit
    def fill(blocks):
        memory, turn = model.memory(2, LENGTH, blocks), model.rotation(PLACES)
        return model.reread(TOKENS, memory, Region(0, LENGTH), SEEN, turn=turn, blocks=blocks)[1]

    @jax.jit
    def reread(blocks, kept, tokens, places, start):
        return model.reread(
            tokens, kept, Region(start, size), SEEN, turn=model.rotation(places), blocks=blocks,
            window=(size // 3, max(1, size // 2)),
        )  # fmt: skip

    together, single = pack(model), model.unstacked()
    kept, expected = fill(together), fill(single)
    for start in (0, 5, LENGTH - size, 5):
        cut = np.s_[:, start : start + size]
        given = (TOKENS[cut] + start, PLACES[cut], jnp.int32(start))
        rows, kept = reread(together, kept, *given)
        own, expected = reread(single, expected, *given)
        close(rows, own)
        close(kept.k, jnp.stack([layer.k for layer in expected]))
        close(kept.v, jnp.stack([layer.v for layer in expected]))


# First position given and behind the last, rows that are renewed, window: positions of the canvas.
CALLS = [
    ((0, 29), (0, 29), (8, 8)), ((0, 29), (8, 16), (8, 8)), ((0, 29), (8, 16), (8, 8)),
    ((0, 29), (3, 21), (8, 8)), ((0, 29), (8, 29), (8, 8)), ((0, 29), (16, 24), (4, 5)),
    ((0, 29), (10, 11), (8, 8)), ((0, 29), (12, 12), (8, 8)), ((0, 29), (4, 6), (17, 12)),
    ((0, 29), (0, 29), (0, 29)), ((6, 23), (8, 16), (7, 12)), ((21, 29), (21, 29), (28, 1)),
]  # fmt: skip


@pytest.mark.parametrize("visible", [SEEN, SEEN & block_causal(LENGTH, 8)], ids=["", "causal"])
def test_only_a_span_is_renewed_in_a_chain_of_calls(visible):
    model = make(n_layers=3)
    own, blocks = Blocks(model, LENGTH, 2), pack(model)
    kept = tuple(model.memory(2, LENGTH, blocks))

    @jax.jit(static_argnames=("size",))
    def run(x, turn, visible, kept, start, span, origin, size):
        options = {"start": start, "span": span, "window": (origin, size), "kept": kept}
        return blocks.run(x, turn, visible, **options)

    for number, ((start, end), (first, last), (origin, size)) in enumerate(CALLS):
        x, _ = inputs(model, 2, end - start, seed=number)
        places = PLACES[:, start:end]
        seen = visible if visible.shape[2] == 1 else visible[:, :, start:end]
        span, window = (first - start, last - start), (origin - start, size)
        traced = jnp.int32(start), tuple(map(jnp.int32, span)), jnp.int32(window[0])
        before = kept
        rows, kept = run(x, model.rotation(places), jnp.asarray(seen), kept, *traced, size=size)
        close(rows, own.run(x, places, seen, start=start, span=span, window=window))
        is_renewed = (np.arange(LENGTH) >= first) & (np.arange(LENGTH) < last)
        for old, new, wide in zip(before, kept, (own.k, own.v), strict=True):
            old, new = np.asarray(old), np.asarray(new)
            np.testing.assert_array_equal(new[..., ~is_renewed, :], old[..., ~is_renewed, :])
            close(new, wide)
            assert (new != old)[..., is_renewed, :].sum() >= 0.99 * new[..., is_renewed, :].size


def test_what_is_kept_in_bfloat16_is_what_is_seen():
    model = make(dtype="bfloat16")
    x, positions = inputs(model, 2, 20)
    blocks, turn = pack(model), model.rotation(positions)
    whole, _ = blocks.run(x, turn, None)
    rows, kept = blocks.run(x, turn, None, kept=tuple(model.memory(2, 20, blocks)))
    np.testing.assert_array_equal(whole, rows)
    rows, again = blocks.run(x, turn, None, span=(0, 0), window=(5, 4), kept=kept)
    np.testing.assert_array_equal(whole[:, 5:9], rows)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), kept, again))


def test_a_part_that_is_given_no_mask_sees_all_that_is_kept():
    model = make()
    x, positions = inputs(model, 1, 20)
    blocks, turn = pack(model), model.rotation(positions)
    whole, kept = blocks.run(x, turn, None, kept=tuple(model.memory(1, 20, blocks)))
    turn = (turn[0][:, 5:9], turn[1][:, 5:9])
    rows, _ = blocks.run(x[:, 5:9], turn, None, start=5, kept=kept)
    close(rows, whole[:, 5:9])


def test_what_was_given_is_not_written_to():
    model = make()
    x, positions = inputs(model, 2, 20)
    blocks, turn = pack(model), model.rotation(positions)
    memory = tuple(model.memory(2, 20, blocks))
    _, kept = blocks.run(x, turn, None, kept=memory)
    assert all(part.any() for part in kept)
    assert not any(part.any() for part in memory)


@pytest.mark.parametrize("place", ["an input", "a weight", "a norm"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_a_number_stays_so(place, dtype, value):
    model = make(dtype=dtype)
    x, positions = inputs(model, 3, 20)
    expected = computed(model, x, positions)
    if place == "an input":
        found = computed(model, x.at[1, 3, 4].set(value), positions)
        assert np.isnan(found[1]).all()
        np.testing.assert_array_equal(found[::2], expected[::2])
        return
    if place == "a norm":
        model.blocks.ff_norm.weight[...] = model.blocks.ff_norm.weight[...].at[1, 7].set(value)
        assert np.isnan(computed(model, x, positions)).all()
        return
    for index, layer in enumerate(packed._layers(model.blocks)):
        own = layer.kernel[...]
        layer.kernel[...] = own.at[1, 7, 5].set(value)
        found = computed(model, x, positions)
        layer.kernel[...] = own
        # A column of the last product is a column of what comes out.
        place = np.s_[:, :, 5] if index == 6 else np.s_[:]
        is_other = np.isin(np.arange(32), [5], invert=index == 6)
        if value != value:
            assert np.isnan(found[place]).all()
        assert not np.isfinite(found[place]).any()
        if index == 6:
            np.testing.assert_array_equal(found[..., is_other], expected[..., is_other])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_zeros_give_zeros_and_blocks_of_zeros_change_nothing(dtype):
    model = make(dtype=dtype)
    x, positions = inputs(model, 2, 20)
    assert not computed(model, jnp.zeros_like(x), positions).any()
    model = jax.tree.map(jnp.zeros_like, model)
    np.testing.assert_array_equal(computed(model, x, positions), x)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12])
def test_rows_of_any_size_are_those_of_float64(size):
    model = make()
    x, positions = inputs(model, 2, 20)
    # Norms divide the size out unless eps is larger.
    x = x.at[:, ::2].multiply(size)
    found, expected = computed(model, x, positions), oracle(model, x, positions)
    near = np.abs(expected).max(axis=-1, keepdims=True)
    close(found / near, expected / near)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_call_gives_the_same_bits_beside_others(dtype):
    model, other = make(dtype=dtype), make(dtype=dtype, d_model=64)
    x, positions = inputs(model, 3, 37)
    y, elsewhere = inputs(other, 2, 50)
    blocks, turn = pack(model), model.rotation(positions)
    run = jax.jit(lambda blocks: blocks.run(x, turn, None, window=(3, 30))[0])
    expected, of_other = run(blocks), computed(other, y, elsewhere)
    found = []

    def repeat():
        found.extend(run(blocks) for _ in range(10))

    threads = [threading.Thread(target=repeat) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        np.testing.assert_array_equal(computed(other, y, elsewhere), of_other)
    for thread in threads:
        thread.join()
    assert len(found) == 20
    for rows in found:
        np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_do_not_depend_on_batch_mates_bit_for_bit(dtype):
    model = make(dtype=dtype)
    x, positions = inputs(model, 3, 37)
    visible = MASKS["neither"]
    together = computed(model, x, positions, visible, window=(11, 9))
    for row in range(3):
        one = np.s_[row : row + 1]
        alone = computed(model, x[one], positions[one], visible[one], window=(11, 9))
        np.testing.assert_array_equal(alone, together[one])
