"""The mask predictor in torch: golden values of the released class, and its properties.

On a simulated NPU every test runs with plain and with fused kernels.
"""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.presets import preset
from jaxllada.common.counting import count_parameters
from jaxllada.common.errors import UserError
from npu_backend.convert import load
from npu_backend.models.family import abstract_model
from npu_backend.models.kernels import attend
from npu_backend.models.mask_predictor import MaskPredictor
from tests.jax.golden import DENSE, VARIANT_CONFIGS, dense_values, write_variant
from tests.npu.devices import DEVICE, IS_NPU, KERNELS, get, put

TINY = preset("tiny")
TOKENS = put(np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 12)))
GOLDEN = dense_values()


def make(config=TINY, kernels="plain", seed=0, **compute):
    model = MaskPredictor(
        config,
        compute=ComputeConfig(**compute),
        kernels=KERNELS[kernels],
        generator=torch.Generator().manual_seed(seed),
    )
    return model.to(DEVICE)


def changed(**fields):
    return dataclasses.replace(TINY, **fields)


@pytest.fixture(autouse=True)
def _no_gradients(request):
    with torch.set_grad_enabled("gradient" in request.function.__name__):
        yield


@pytest.fixture(params=KERNELS)
def kernels(request):
    return request.param


@pytest.fixture
def model(kernels):
    return make(kernels=kernels)


def test_logits_equal_the_released_model(kernels):
    released = load(DENSE, device=DEVICE)
    released.use(KERNELS[kernels])
    ids, mask = put(GOLDEN["fwd_ids"]), put(GOLDEN["fwdmask_attention_mask"])
    np.testing.assert_allclose(get(released(ids)), GOLDEN["fwd_logits"], atol=2e-4, rtol=0)
    seen = GOLDEN["fwdmask_attention_mask"].astype(bool)
    np.testing.assert_allclose(
        get(released(ids, mask))[seen], GOLDEN["fwdmask_logits"][seen], atol=2e-4, rtol=0
    )


@pytest.mark.parametrize("name", VARIANT_CONFIGS)
def test_every_supported_field_computes_what_the_released_class_computes(name, kernels, tmp_path):
    golden = write_variant(name, tmp_path)
    released = load(tmp_path, device=DEVICE)
    released.use(KERNELS[kernels])
    ids, mask, bias = (put(golden[key]) for key in ("ids", "mask", "bias"))
    seen = golden["mask"].astype(bool)
    close = {"atol": 3e-5, "rtol": 1e-5}  # float32 sums in another order, logits up to about 20
    np.testing.assert_allclose(get(released(ids)), golden["logits"], **close)
    np.testing.assert_allclose(get(released(ids, mask))[seen], golden["logits_mask"][seen], **close)
    np.testing.assert_allclose(
        get(released(ids, attention_bias=bias)), golden["logits_bias"], **close
    )
    both = released(ids, mask, attention_bias=bias > -1)
    np.testing.assert_allclose(get(both)[seen], golden["logits_both"][seen], **close)


def test_hidden_keys_have_no_influence(model):
    mask, other = torch.ones_like(TOKENS), TOKENS.clone()
    mask[:, 3] = 0
    other[:, 3] = (other[:, 3] + 5) % 100
    keep = np.delete(np.arange(12), 3)  # position 3 still has its own query
    before, after = get(model(TOKENS, mask)), get(model(other, mask))
    np.testing.assert_array_equal(before[:, keep], after[:, keep])


def test_every_position_sees_every_other(model):
    base = get(model(TOKENS))
    for position in (0, 5, 11):
        other = TOKENS.clone()
        other[:, position] = (other[:, position] + 5) % 100
        assert (np.abs(get(model(other)) - base).max(axis=(0, 2)) > 0).all()


def test_a_mask_of_ones_changes_nothing(model):
    mask = torch.ones_like(TOKENS)
    np.testing.assert_allclose(get(model(TOKENS, mask)), get(model(TOKENS)), atol=1e-6)


def test_a_row_that_sees_nothing_harms_no_other_row(model):
    mask = torch.ones_like(TOKENS)
    mask[1] = 0
    both, alone = get(model(TOKENS, mask)), get(model(TOKENS[:1]))
    assert np.isfinite(both).all()
    np.testing.assert_allclose(both[:1], alone, atol=1e-6)


def test_positions_select_rows_of_the_full_logits(model):
    positions = put(np.array([[3, 0, 7], [11, 11, 2]]))
    rows = np.take_along_axis(get(model(TOKENS)), positions.cpu().numpy()[..., None], axis=1)
    np.testing.assert_allclose(get(model(TOKENS, positions=positions)), rows, atol=1e-6)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
def test_a_window_gives_the_same_rows(model, with_mask, on_device):
    mask = put((np.arange(12) > np.array([[0], [3]])).astype(np.int32)) if with_mask else None
    start = torch.tensor(5, device=DEVICE) if on_device else 5
    rows = model.hidden(TOKENS, mask, window=(start, 4), blocks=model.unstacked())
    np.testing.assert_allclose(get(rows), get(model.hidden(TOKENS, mask))[:, 5:9], atol=1e-5)


def test_only_relative_positions_matter(model):
    shifted = torch.arange(12, device=DEVICE)[None] + 37
    np.testing.assert_allclose(
        get(model(TOKENS, position_ids=shifted)), get(model(TOKENS)), atol=2e-5, rtol=1e-4
    )
    turned = model.hidden(TOKENS, turn=model.rotation(shifted))
    np.testing.assert_array_equal(get(turned), get(model.hidden(TOKENS, position_ids=shifted)))


def test_position_ids_are_per_row(model):
    ids = put(np.stack([np.arange(12), np.arange(12)[::-1]]))
    both = get(model(TOKENS, position_ids=ids))
    for row in range(2):
        alone = model(TOKENS[row : row + 1], position_ids=ids[row : row + 1])
        np.testing.assert_allclose(both[row], get(alone)[0], atol=1e-5)


def gradients(model, tokens=TOKENS, mask=None):
    model.zero_grad()
    model(tokens, mask).sin().sum().backward()
    return {name: get(p.grad) for name, p in model.named_parameters()}


def test_gradients_of_fused_kernels_are_those_of_plain_ones(kernels):
    mask = put((np.arange(12) > np.array([[0], [3]])).astype(np.int32))
    expected = gradients(make(), mask=mask)
    found = gradients(make(kernels=kernels), mask=mask)
    for name, grad in expected.items():
        scale = np.abs(grad).max()
        np.testing.assert_allclose(found[name], grad, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("remat", ["full", "dots", "attention"])
@pytest.mark.parametrize("drops", [False, True])
def test_recomputation_changes_no_gradient(remat, drops, kernels):
    config = changed(residual_dropout=0.1, attention_dropout=0.1) if drops else TINY
    seen = []
    for policy in ("none", remat):
        torch.manual_seed(3)
        seen.append(gradients(make(config, kernels, remat=policy).train(drops)))
    for name in seen[0]:
        np.testing.assert_array_equal(seen[0][name], seen[1][name], err_msg=name)


class CountProducts(TorchDispatchMode):
    """Counts matrix products of dense layers and of attention, forward and backward."""

    def __init__(self):
        super().__init__()
        self.dense = self.scores = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "linear", "bmm", "matmul"):
            is_matrix = args[1].dim() == 2
            self.dense, self.scores = self.dense + is_matrix, self.scores + (not is_matrix)
        return func(*args, **(kwargs or {}))


def test_each_recomputation_repeats_what_its_name_says_for_gradients():
    def products(remat):
        model = make(remat=remat, attention="xla")
        with CountProducts() as count:
            model.hidden(TOKENS).sum().backward()
        return count

    none, full, dots, attention = map(products, ("none", "full", "dots", "attention"))
    # q, k, v, out, gate, up; nobody needs the last product of a block again.
    assert full.dense - none.dense >= 6 * TINY.n_layers
    assert dots.dense == none.dense
    assert attention.dense == none.dense
    # The products of weights and values are nothing that attention itself needs again.
    assert full.scores == dots.scores > attention.scores > none.scores


def test_bfloat16_stays_near_float32(kernels):
    half = make(kernels=kernels, dtype="bfloat16")
    assert all(p.dtype == torch.float32 for p in half.parameters())
    logits = half(TOKENS)
    assert logits.dtype == torch.bfloat16
    # Eight bits of mantissa through two blocks: a few percent of the logits' spread of about 1.
    np.testing.assert_allclose(get(logits), get(make()(TOKENS)), atol=0.1)


def test_bfloat16_gradients_are_near_those_of_float32(kernels):
    half = make(kernels=kernels, dtype="bfloat16", remat="full")
    expected, found = gradients(make()), gradients(half)
    for name, grad in expected.items():
        error = np.linalg.norm(found[name] - grad) / np.linalg.norm(grad)
        assert error < 0.1, (name, error)


def test_autocast_gradients_of_a_float32_model_stay_near_it(kernels):
    expected, model = gradients(make()), make(kernels=kernels, remat="full")
    with torch.autocast(DEVICE.type, torch.bfloat16):
        logits = model(TOKENS)
    np.testing.assert_allclose(get(logits), get(make()(TOKENS)), atol=0.1)
    logits.sin().sum().backward()
    for name, p in model.named_parameters():
        error = np.linalg.norm(get(p.grad) - expected[name]) / np.linalg.norm(expected[name])
        assert error < 0.1, (name, error)


@pytest.mark.parametrize("rate", ["attention_dropout", "residual_dropout", "embedding_dropout"])
def test_dropout_needs_training_mode_and_follows_the_seed(rate, kernels):
    config = changed(**{rate: 0.5})
    dropping = make(config, kernels)
    np.testing.assert_array_equal(get(dropping(TOKENS)), get(make(kernels=kernels)(TOKENS)))
    dropping.train()

    def run(seed):
        torch.manual_seed(seed)
        return get(dropping.hidden(TOKENS))

    once, again, other = run(1), run(1), run(2)
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - other).max() > 1e-3


def test_input_embedding_norm_scales_by_the_root_of_the_width():
    scaled = make(changed(input_emb_norm=True))
    factor = TINY.d_model**0.5
    np.testing.assert_allclose(get(scaled.embed(TOKENS)), get(make().embed(TOKENS)) * factor, 1e-6)


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
    built = sum(p.numel() for p in abstract_model(config).parameters())
    assert count_parameters(config).total == built


def test_published_sizes_are_counted_exactly():
    for name, total in {"llada-100m": 124_327_616, "llada-8b": 8_015_581_184}.items():
        assert sum(p.numel() for p in abstract_model(preset(name)).parameters()) == total


@pytest.mark.parametrize("implementation", ["xla", "auto"])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("bias_heads", [1, 4])
@pytest.mark.parametrize("queries", [1, 12])
def test_biases_reach_the_right_heads_when_key_heads_are_shared(
    n_kv_heads, bias_heads, queries, implementation, kernels
):
    """Against the released way: key heads repeated, then one softmax per query head."""
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.normal(size=(2, 12, heads, 8)).astype(np.float32)
        for heads in (4, n_kv_heads, n_kv_heads)
    )
    bias = rng.normal(size=(2, bias_heads, queries, 12)).astype(np.float32)
    visible = rng.random((2, bias_heads, queries, 12)) < 0.7
    how = {"implementation": implementation, "kernels": KERNELS[kernels]}
    both = attend(*map(put, (q, k, v)), visible=put(visible), bias=put(bias), **how)
    masked = attend(*map(put, (q, k, v)), visible=put(visible), **how)
    k, v = (np.repeat(x, 4 // n_kv_heads, axis=2) for x in (k, v))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(8)
    for out, raw in ((both, scores + bias), (masked, scores)):
        odds = np.where(visible, np.exp(raw), 0)
        expected = np.einsum("bhqk,bkhd->bqhd", odds / odds.sum(-1, keepdims=True), v)
        np.testing.assert_allclose(get(out), expected, atol=1e-5)


@pytest.mark.parametrize("kernel", ["cudnn", "splash"])
def test_a_kernel_of_other_hardware_is_refused_by_name(kernel):
    with pytest.raises(UserError, match=f"attention='{kernel}' needs"):
        make(attention=kernel)(TOKENS)


def test_an_initialiser_the_release_refuses_is_refused():
    with pytest.raises(UserError, match="full_megatron"):
        make(changed(init_fn="full_megatron"))


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
    drawn = make(changed(**(WIDE | fields)))
    last = drawn.block(2)
    weights = (
        drawn.wte, last.attention.q_proj.weight, last.attention.attn_out.weight,
        last.mlp.ff_out.weight, drawn.head_weight,
    )  # fmt: skip
    # A truncation at three sigma takes 1.3 % off a normal's spread; sampling adds under 1 %.
    cut = fields["init_fn"] in ("mitchell", "full_megatron") or "init_cutoff_factor" in fields
    for weight, sigma in zip(weights, expected, strict=True):
        np.testing.assert_allclose(np.std(get(weight)), sigma * (0.9866 if cut else 1), rtol=0.02)
        if cut:
            assert np.abs(get(weight)).max() <= 3 * sigma * 1.0001
    assert (get(drawn.ln_f.weight) == 1).all()


@pytest.mark.skipif(not IS_NPU, reason="needs a (simulated) NPU")
def test_moving_to_the_npu_and_back_changes_no_logit(kernels):
    there = make(kernels=kernels)
    here = copy.deepcopy(there).cpu()
    here.use(KERNELS["plain"])
    np.testing.assert_allclose(get(there(TOKENS)), get(here(TOKENS.cpu())), atol=1e-5)
