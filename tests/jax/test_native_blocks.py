"""The C++ kernel of all blocks: float64 blocks as oracle, the sampler with and without it."""

import dataclasses
import functools
import gc
import stat
import threading
import weakref

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.lora import LoraConfig
from jaxllada.common.config.presets import preset
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.convert import load
from jaxllada.models import packed
from jaxllada.models.block import run_blocks
from jaxllada.models.family import abstract_model
from jaxllada.models.kept import Region
from jaxllada.models.lora import add_adapters
from jaxllada.models.packed import PackedBlocks, can_pack, pack
from jaxllada.native import blocks as native
from jaxllada.native import build, head
from jaxllada.sampling import generate, predict
from tests.sampling_cases import PROMPTS, VISIBLE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(build._compiler() is None, reason="there is no C++ compiler"),
]


def forget():
    for cached in (build.library, native._kernel, head._kernel, head._has_tiles):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def kernel(monkeypatch):
    monkeypatch.setenv("JAXLLADA_NATIVE", "1")
    forget()
    if not build.cpu_has(*native.UNIT):
        pytest.skip("this CPU has no matrix unit")
    assert build.library("body") is not None
    if not native.has_kernel("float32"):
        pytest.skip("the system does not let the matrix unit be used")
    yield
    forget()


@pytest.fixture(scope="module")
def model(sharp):
    return load(sharp)


PLAIN = dataclasses.replace(preset("tiny"), rope_theta=100.0)


def shapes(compute=None, **changes):
    return _shapes(dataclasses.replace(PLAIN, **changes), ComputeConfig(**compute or {}))


_shapes = functools.cache(abstract_model)


def make(seed=0, dtype="float32", **changes):
    """A model whose blocks change what goes in as much as it is."""
    empty = shapes({"dtype": dtype}, **changes)
    layers = empty.config.n_layers
    draw = np.random.default_rng(seed)

    def fill(leaf):
        is_norm = leaf.ndim == 1 or (leaf.ndim == 2 and len(leaf) == layers)
        weight = draw.normal(size=leaf.shape)
        weight = 1 + weight / 4 if is_norm else weight / np.sqrt(leaf.shape[-2])
        return jax.device_put(weight.astype(dtype))

    return jax.tree.map(fill, empty)


def inputs(model, rows, length, seed=1):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, length, model.config.d_model)).astype(model.compute.dtype)
    # Rows begin at places of their own, as behind padding.
    return jax.device_put(x), np.maximum(np.arange(length) - 3 * np.arange(rows)[:, None], 0)


def half(y):
    return y.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


class Blocks:
    """The blocks in float64, with the keys and values [N, B, kv_heads, L, H] they keep.

    `half` puts in the roundings of a model that computes in bfloat16.
    """

    def __init__(self, model, length=0, rows=0, round=lambda y: y):
        def wide(param):
            return np.asarray(param[...]).astype(np.float64)

        blocks, c = model.blocks, model.config
        self.config, self.round = c, round
        self.norms = wide(blocks.attn_norm.weight), wide(blocks.ff_norm.weight)
        self.weights = [wide(layer.kernel) for layer in packed._layers(blocks)]
        self.k, self.v = np.zeros((2, c.n_layers, rows, c.kv_heads, length, c.head_dim))

    def heads(self, y, positions=None):
        """Splits the heads [B, heads, R, H], turned to their positions."""
        width = self.config.head_dim
        y = y.reshape(*y.shape[:2], -1, width).swapaxes(1, 2)
        if positions is None:
            return y
        frequency = self.config.rope_theta ** -(np.arange(0, width, 2) / width)
        angle = positions[:, None, :, None] * frequency
        a, b = np.split(y, 2, axis=-1)
        cos, sin = np.cos(angle), np.sin(angle)
        return self.round(np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1))

    def normed(self, x, weight):
        factor = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + self.config.rms_norm_eps)
        return self.round(self.round(x / factor) * weight)

    def run(self, x, positions, visible=None, *, start=0, span=None, window=None):
        """As `PackedBlocks.run`."""
        c, round, count = self.config, self.round, x.shape[1]
        x = np.asarray(x).astype(np.float64)
        first, last = span or (0, count)
        for layer in range(c.n_layers):
            q, k, v, out, gate, up, down = (weight[layer] for weight in self.weights)
            y = self.normed(x, self.norms[0][layer])
            place = np.s_[:, :, start + first : start + last]
            self.k[layer][place] = self.heads(round(y @ k), positions)[:, :, first:last]
            self.v[layer][place] = self.heads(round(y @ v))[:, :, first:last]
            groups = c.n_heads // c.kv_heads
            keys, values = (np.repeat(z[layer], groups, axis=1) for z in (self.k, self.v))
            queries = self.heads(round(y @ q), positions)
            scores = queries @ keys.swapaxes(-1, -2) / np.sqrt(c.head_dim)
            scores = scores if visible is None else np.where(visible, scores, -1e30)
            weight = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = round(round(weight) @ values / weight.sum(-1, keepdims=True))
            x = round(x + round(mixed.swapaxes(1, 2).reshape(x.shape) @ out))
            y = self.normed(x, self.norms[1][layer])
            inner = round(y @ gate)
            inner = round(round(inner / (1 + np.exp(-inner))) * round(y @ up))
            x = round(x + round(inner @ down))
        origin, size = window or (0, count)
        return x[:, origin : origin + size]


def oracle(model, x, positions, visible=None, **options):
    blocks = Blocks(model, x.shape[1], len(x))
    return blocks.run(x, positions, visible, **options)


@functools.partial(jax.jit, static_argnames="window")
def computed(model, x, positions, visible=None, window=None):
    return pack(model).run(x, model.rotation(positions), visible, window=window)[0]


def close(found, expected):
    """Compares with numbers of about one to ten."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def error(found, expected):
    found = np.asarray(found).astype(np.float64)
    return np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))


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


def test_what_was_given_is_not_written_to():
    model = make()
    x, positions = inputs(model, 2, 20)
    blocks, turn = pack(model), model.rotation(positions)
    memory = tuple(model.memory(2, 20, blocks))
    _, kept = blocks.run(x, turn, None, kept=memory)
    assert all(part.any() for part in kept)
    assert not any(part.any() for part in memory)


PLAN = {"steps": 12, "gen_length": 24, "block_length": 8}
GUIDED = {"cfg_scale": 0.7}
RULES = [
    {"selection": "threshold:0.3"} | GUIDED,
    {"smoothing": "soft", "canvas": "adaptive:8,8", "gen_length": 32},
    {"cache": "prefix:3", "selection": "factor:1.0"} | GUIDED,
    {"cache": "dual", "smoothing": "soft"} | GUIDED,
    {"cache": "vicinity:20,5,1,4", "selection": "threshold:0.5"},
    {"cache": "block_causal", "attention": "block_causal"},
]  # fmt: skip


def traced(model, options, prompt=PROMPTS, seen=VISIBLE, pieces=None):
    """The record of a run, and how often each kernel was put into a program."""
    calls = {"blocks": 0, "head": 0}

    def counted(name, function):
        def count(*given, **options):
            calls[name] += 1
            return function(*given, **options)

        return count

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "run", counted("blocks", native.run))
        patch.setattr(predict, "read_at_once", counted("head", predict.read_at_once))
        generate.advance.clear_cache()
        config = SamplingConfig(**PLAN | options)
        key = jax.random.key(0)
        run = generate.sample_stepwise(model, prompt, config, seen, key, steps_per_piece=pieces)
        return list(run), calls


def without(monkeypatch):
    monkeypatch.setenv("JAXLLADA_NATIVE", "0")
    forget()


def assert_same(found, expected):
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.order, expected.order)
    np.testing.assert_allclose(found.confidence, expected.confidence, rtol=2e-4)


@pytest.mark.parametrize("options", RULES, ids=str)
def test_sampling_with_kernels_commits_the_same_tokens_in_the_same_order(
    model, options, monkeypatch
):
    (*_, found), calls = traced(model, options)
    assert calls["blocks"]
    without(monkeypatch)
    (*_, expected), calls = traced(model, options)
    assert not any(calls.values())
    assert_same(found, expected)


def test_gaps_of_prompts_are_filled_with_the_same_tokens(model, monkeypatch):
    gaps = PROMPTS.copy()
    gaps[:, -3] = gaps[0, 1] = model.config.mask_id
    options = {"infill": True, "gen_length": 8, "steps": 4, "attention": "block_causal"}
    (*_, found), calls = traced(model, options, gaps)
    assert calls["blocks"]
    assert calls["head"]
    without(monkeypatch)
    (*_, expected), _ = traced(model, options, gaps)
    np.testing.assert_array_equal(found.prompt, expected.prompt)
    assert_same(found, expected)


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_pieces_with_kernels_are_those_of_one_run(model, cache, monkeypatch):
    pieces, calls = traced(model, {"cache": cache}, pieces=5)
    assert calls["blocks"]
    assert len(pieces) > 2
    (*_, alone), _ = traced(model, {"cache": cache}, PROMPTS[1:, 3:], VISIBLE[1:, 3:])
    np.testing.assert_array_equal(alone.tokens[0], pieces[-1].tokens[1])
    without(monkeypatch)
    (*_, whole), _ = traced(model, {"cache": cache})
    assert_same(pieces[-1], whole)


def test_a_cache_that_looks_into_blocks_goes_without(model):
    _, calls = traced(model, {"cache": "dllm:4,3,0.25"})
    assert not calls["blocks"]
    assert calls["head"]


REFUSED = {
    "feed-forward parts of another form": {"block_type": "sequential", "activation_type": "gelu"},
    "another activation": {"activation_type": "gelu"},
    "a norm with a mean": {"layer_norm_type": "default"},
    "a norm of Gemma": {"layer_norm_type": "gemma_rms"},
    "norms without weights": {"layer_norm_with_affine": False},
    "norms with a bias": {"bias_for_layer_norm": True},
    "norms of queries and keys": {"attention_layer_norm": True},
    "biases": {"include_bias": True},
    "biases of queries": {"include_qkv_bias": True},
}


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED.keys())
def test_blocks_of_another_form_go_without(changes):
    assert can_pack(shapes())
    assert not can_pack(shapes(**changes))


@pytest.mark.parametrize(
    "compute", [{"dtype": "float16"}, {"attention": "cudnn"}, {"attention": "splash"}], ids=str
)
def test_models_that_compute_otherwise_go_without(compute):
    assert can_pack(shapes({"attention": "xla"}))
    assert can_pack(shapes({"dtype": "bfloat16", "param_dtype": "float16"}))
    assert not can_pack(shapes(compute))


def test_angles_in_half_precision_go_without():
    assert can_pack(shapes(rope_full_precision=False))
    assert not can_pack(shapes({"dtype": "bfloat16"}, rope_full_precision=False))


def test_adapters_and_models_of_another_family_go_without():
    assert not can_pack(add_adapters(shapes(), LoraConfig(r=2, lora_alpha=2.0)))
    only = LoraConfig(r=2, lora_alpha=2.0, target_modules="v_proj")
    assert not can_pack(add_adapters(shapes(), only))
    assert not can_pack(abstract_model(preset("qwen2-tiny"), ComputeConfig()))


def test_several_devices_go_without(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert not can_pack(shapes())
    assert make().packed() == (None, None)


@pytest.mark.parametrize(("name", "value"), [("JAXLLADA_NATIVE", "0"), ("CXX", "no-such-compiler")])
def test_without_kernels_models_are_read_as_they_are(name, value, monkeypatch, capfd):
    monkeypatch.setenv(name, value)
    forget()
    assert not can_pack(shapes())
    assert make().packed() == (None, None)
    assert capfd.readouterr().err == ""


def test_a_processor_without_a_matrix_unit_goes_without(monkeypatch, tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/bash\nexec {build._compiler()} "$@" -march=x86-64-v3 -O0\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    forget()
    assert build.library("body") is not None
    assert not can_pack(shapes())


def test_nothing_is_built_for_a_processor_that_lists_no_matrix_unit(monkeypatch, capfd):
    monkeypatch.setattr(build, "_cpu", lambda: b"flags: fpu sse2 avx2 avx512bw amx_tile")
    forget()
    assert not can_pack(shapes())
    assert "building the body kernel" not in capfd.readouterr().err


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


def test_weights_are_packed_once_for_a_model_and_freed_with_it():
    model = make()
    made = model.packed()
    assert isinstance(made.blocks, PackedBlocks)
    assert isinstance(made.head, head.PackedHead)
    again = model.packed()
    assert again.blocks is made.blocks
    assert again.head is made.head
    parts = [weakref.ref(part) for part in (made.blocks.weights[0][0], made.head.panels)]
    count = len(packed._made)
    del made, again
    gc.collect()
    assert all(part() is not None for part in parts)
    del model
    gc.collect()
    assert all(part() is None for part in parts)
    assert len(packed._made) < count


def test_other_weights_are_packed_again():
    model = make()
    before = model.packed()
    x, positions = inputs(model, 1, 9)
    norms = [model.blocks.attn_norm.weight, model.blocks.ff_norm.weight]
    for weight in (*(layer.kernel for layer in packed._layers(model.blocks)), *norms):
        last, kept = model.packed(), jax.tree.map(lambda leaf: leaf, model)
        weight[...] = weight[...] * 1.2
        after = model.packed()
        assert after.blocks is not last.blocks
        assert kept.packed().blocks is last.blocks
        assert after.head is before.head
        rows, _ = after.blocks.run(x, model.rotation(positions), None)
        close(rows, oracle(model, x, positions))
    model.ff_out.weight[...] = model.ff_out.weight[...] * 2
    assert model.packed().head is not before.head
    assert model.packed().blocks is after.blocks
