"""Properties of the mask predictor."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.presets import preset
from jaxllada.common.counting import count_parameters
from jaxllada.common.errors import UserError
from jaxllada.models.family import abstract_model
from jaxllada.models.kernels import attend
from jaxllada.models.mask_predictor import MaskPredictor

TINY = preset("tiny")
TOKENS = np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 12)).astype(np.int32)


def make(config=TINY, seed=0, **compute):
    return MaskPredictor(config, compute=ComputeConfig(**compute), rngs=jax.random.key(seed))


MODEL = make()


def changed(**fields):
    return dataclasses.replace(TINY, **fields)


def test_hidden_keys_have_no_influence():
    mask = np.ones_like(TOKENS)
    mask[:, 3] = 0
    other = TOKENS.copy()
    other[:, 3] = (other[:, 3] + 5) % 100
    keep = np.delete(np.arange(12), 3)  # position 3 still has its own query
    before, after = MODEL(TOKENS, mask), MODEL(other, mask)
    np.testing.assert_array_equal(before[:, keep], after[:, keep])


def test_every_position_sees_every_other():
    base = np.asarray(MODEL(TOKENS))
    for position in (0, 5, 11):
        other = TOKENS.copy()
        other[:, position] = (other[:, position] + 5) % 100
        assert (np.abs(np.asarray(MODEL(other)) - base).max(axis=(0, 2)) > 0).all()


def test_a_mask_of_ones_changes_nothing():
    np.testing.assert_allclose(MODEL(TOKENS, np.ones_like(TOKENS)), MODEL(TOKENS), atol=1e-6)


def test_positions_select_rows_of_the_full_logits():
    positions = np.array([[3, 0, 7], [11, 11, 2]])
    full = np.asarray(MODEL(TOKENS))
    rows = np.take_along_axis(full, positions[..., None], axis=1)
    np.testing.assert_allclose(MODEL(TOKENS, positions=positions), rows, atol=1e-6)


@pytest.mark.parametrize("unstacked", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
def test_a_window_gives_the_same_rows(unstacked, with_mask):
    mask = (np.arange(12) > np.array([[0], [3]])).astype(np.int32) if with_mask else None
    blocks = MODEL.unstacked() if unstacked else None
    rows = jax.jit(lambda m, t, s: m.hidden(t, mask, window=(s, 4), blocks=blocks))
    full = MODEL.hidden(TOKENS, mask)
    np.testing.assert_allclose(rows(MODEL, TOKENS, 5), full[:, 5:9], atol=1e-5)


def test_only_relative_positions_matter():
    shifted = np.arange(12)[None] + 37
    np.testing.assert_allclose(
        MODEL(TOKENS, position_ids=shifted), MODEL(TOKENS), atol=2e-5, rtol=1e-4
    )


def test_position_ids_are_per_row():
    ids = np.stack([np.arange(12), np.arange(12)[::-1]])
    both = MODEL(TOKENS, position_ids=ids)
    for row in range(2):
        alone = MODEL(TOKENS[row : row + 1], position_ids=ids[row : row + 1])
        np.testing.assert_allclose(both[row], alone[0], atol=1e-5)


def test_each_recomputation_keeps_what_its_name_says():
    """What blocks keep for the backward pass: their input, the products, all but the scores."""

    def kept(remat):
        _, pullback = jax.vjp(lambda m: m.hidden(TOKENS), make(remat=remat))
        return sum(leaf.nbytes for leaf in jax.tree.leaves(pullback))

    numbers = 4 * TOKENS.size * TINY.n_layers
    width, keys = TINY.d_model, TINY.kv_heads * TINY.head_dim
    # q, the attention's output, k, v, gate and up; nobody needs the last product of a block.
    products = 2 * width + 2 * keys + 2 * TINY.ffn_width
    assert kept("dots") - kept("full") == numbers * products
    assert kept("none") - kept("attention") >= numbers * TINY.n_heads * TOKENS.shape[1]
    assert kept("dots") < kept("attention")


@pytest.mark.parametrize("remat", ["full", "dots", "attention"])
def test_recomputation_changes_no_gradient(remat):
    def gradient(model):
        return jax.jit(jax.grad(lambda m: jnp.sum(jnp.sin(m(TOKENS)))))(model)

    plain, recomputed = gradient(MODEL), gradient(make(remat=remat))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(recomputed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_bfloat16_stays_near_float32():
    half = make(dtype="bfloat16")
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(half))
    logits = half(TOKENS)
    assert logits.dtype == jnp.bfloat16
    # Eight bits of mantissa through two blocks: a few percent of the logits' spread of about 1.
    np.testing.assert_allclose(np.asarray(logits, np.float32), MODEL(TOKENS), atol=0.1)


@pytest.mark.parametrize("rate", ["attention_dropout", "residual_dropout", "embedding_dropout"])
def test_dropout_needs_a_key_and_follows_it(rate):
    model = make(changed(**{rate: 0.5}))
    np.testing.assert_array_equal(model(TOKENS), MODEL(TOKENS))  # same seed, no key: no dropout
    run = jax.jit(lambda m, k: m.hidden(TOKENS, key=k))
    once, again, other = (run(model, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert np.abs(np.asarray(once) - np.asarray(other)).max() > 1e-3


def test_input_embedding_norm_scales_by_the_root_of_the_width():
    scaled = make(changed(input_emb_norm=True))
    factor = math.sqrt(TINY.d_model)
    np.testing.assert_allclose(scaled.embed(TOKENS), MODEL.embed(TOKENS) * factor, rtol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"weight_tying": True},
        {"attention_layer_norm": True},
        {"include_bias": True, "bias_for_layer_norm": None},
        {"block_type": "sequential", "activation_type": "swiglu"},
        {"layer_norm_with_affine": False},
        {"vocab_size": 120, "embedding_size": 128},
        {"include_qkv_bias": True, "n_kv_heads": 1},
    ],
)
def test_parameter_count_is_that_of_the_built_model(fields):
    config = changed(**fields)
    built = sum(leaf.size for leaf in jax.tree.leaves(make(config)))
    assert count_parameters(config).total == built


def test_published_sizes_are_counted_exactly():
    for name, total in {
        "llada-100m": 124_327_616,
        "llada-1b": 1_487_243_264,
        "llada-8b": 8_015_581_184,
    }.items():
        leaves = jax.tree.leaves(abstract_model(preset(name)))
        assert count_parameters(preset(name)).total == total == sum(leaf.size for leaf in leaves)


WIDE = {"d_model": 256, "n_heads": 4, "n_kv_heads": 4, "mlp_hidden_size": 512, "n_layers": 3}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # sigma of (embedding, q_proj, attn_out of layer 2, ff_out of layer 2, head)
        ({"init_fn": "mitchell"}, (1 / 16, 1 / 16, 1 / 16 / 6**0.5, 512**-0.5 / 6**0.5, 1 / 16)),
        (
            {"init_fn": "mitchell", "scale_logits": True},
            (0.5, 1 / 16, 1 / 16 / 6**0.5, 512**-0.5 / 6**0.5, 1 / 16),
        ),
        ({"init_fn": "normal"}, (0.02, 0.02, 0.02, 0.02 / 6**0.5, 0.02)),
        (
            {"init_fn": "normal", "init_cutoff_factor": 3.0},
            (0.02, 0.02, 0.02, 0.02 / 6**0.5, 0.02),
        ),
        (
            {"init_fn": "kaiming_normal"},
            ((2 / 256) ** 0.5, (2 / 256) ** 0.5, (2 / 256) ** 0.5, (2 / 512) ** 0.5, 128**-0.5),
        ),
        ({"init_fn": "fan_in"}, (1 / 16, 1 / 16, 1 / 16, 512**-0.5, 1 / 16)),
        (
            {"init_fn": "full_megatron", "block_type": "sequential"},
            (0.02, 0.02, 0.02 / 6**0.5, 0.02 / 6**0.5, 1 / 16),
        ),
    ],
)
def test_initial_weights_have_the_published_spread(fields, expected):
    model = make(changed(**(WIDE | fields)))
    last = model.block(2)
    weights = (
        model.wte[...],
        last.attention.q_proj.kernel[...],
        last.attention.attn_out.kernel[...],
        last.mlp.ff_out.kernel[...],
        model.head_weight,
    )
    # A truncation at three sigma takes 1.3 % off a normal's spread; sampling adds under 1 %.
    cut = fields["init_fn"] in ("mitchell", "full_megatron") or "init_cutoff_factor" in fields
    for weight, sigma in zip(weights, expected, strict=True):
        np.testing.assert_allclose(np.std(weight), sigma * (0.9866 if cut else 1), rtol=0.02)
        if cut:
            assert np.abs(weight).max() <= 3 * sigma * 1.0001
    assert (np.asarray(model.ln_f.weight[...]) == 1).all()


def test_an_initialiser_the_release_refuses_is_refused():
    with pytest.raises(UserError, match="full_megatron"):
        make(changed(init_fn="full_megatron"))


@pytest.mark.parametrize("kernel", ["cudnn", "splash"])
def test_a_kernel_of_other_hardware_is_refused_by_name(kernel):
    with pytest.raises(UserError, match=f"attention='{kernel}' needs"):
        make(attention=kernel)(TOKENS)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("bias_heads", [1, 4])
@pytest.mark.parametrize("queries", [1, 12])
def test_biases_reach_the_right_heads_when_key_heads_are_shared(n_kv_heads, bias_heads, queries):
    """Against the released way: key heads repeated, then one softmax per query head."""
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.normal(size=(2, 12, heads, 8)).astype(np.float32)
        for heads in (4, n_kv_heads, n_kv_heads)
    )
    bias = rng.normal(size=(2, bias_heads, queries, 12)).astype(np.float32)
    visible = rng.random((2, bias_heads, queries, 12)) < 0.7
    out = attend(*map(jnp.asarray, (q, k, v)), visible=jnp.asarray(visible), bias=jnp.asarray(bias))
    k, v = (np.repeat(x, 4 // n_kv_heads, axis=2) for x in (k, v))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(8) + bias
    odds = np.where(visible, np.exp(scores), 0)
    expected = np.einsum("bhqk,bkhd->bqhd", odds / odds.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(out, expected, atol=1e-5)
