"""Fused Ascend kernels against their plain twins, and the probe that decides between them."""

import dataclasses
import gc

import numpy as np
import pytest
import torch

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.presets import preset
from jaxllada.common.errors import UserError
from npu_backend import ops, probe
from npu_backend.models.kernels import attend
from npu_backend.models.norm import Norm
from npu_backend.models.rope import rotate, rotation
from tests.npu.devices import DEVICE, IS_NPU, get, put

TINY = preset("tiny")
needs_npu = pytest.mark.skipif(not IS_NPU, reason="needs a (simulated) NPU: set NPU_SIM=1")


def normal(*shape, dtype=torch.float32, seed=0):
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return put(array).to(dtype)


def choose(mode, device=DEVICE, dtype="float32", **changes):
    told = []
    config = dataclasses.replace(TINY, **changes)
    compute = ComputeConfig(dtype=dtype)
    kernels = probe.choose_kernels(
        mode, device, config, compute, batch=3, length=16, tell=told.append
    )
    return kernels, told


def test_without_an_npu_everything_is_plain():
    cpu = torch.device("cpu")
    for mode in ("auto", "plain"):
        assert choose(mode, cpu) == (ops.PLAIN, [])
    with pytest.raises(UserError, match="ops=fused: cpu has no fused kernels"):
        choose("fused", cpu)
    with pytest.raises(UserError, match="ops='fast' is unknown: use one of auto, fused, plain"):
        choose("fast", cpu)


@needs_npu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "fields", [{}, {"n_kv_heads": 1}, {"block_type": "sequential", "activation_type": "swiglu"}]
)
def test_the_probe_finds_sound_kernels_exact(dtype, fields):
    assert choose("auto", dtype=dtype, **fields) == (ops.FUSED, [])
    assert choose("fused") == (ops.FUSED, [])
    assert choose("plain") == (ops.PLAIN, [])


def wrong_scale(q, k, v, visible=None, dropout_rate=0.0):
    return ops.products_attention(q * 0.9, k, v)


def blind_to_masks(q, k, v, visible=None, dropout_rate=0.0):
    return ops.products_attention(q, k, v)


def wrong_gradient(x, cos, sin):
    return ops.plain_rotate(x, cos, sin.neg()).detach() + 0 * x


def missing(gate, value):
    raise RuntimeError("npu_swiglu: not in libopapi.so\nmore")


def not_a_number(x, eps):
    return ops.unit_rms(x, eps) * float("nan")


@needs_npu
@pytest.mark.parametrize(
    ("name", "broken", "kernel", "says"),
    [
        ("fused_attention", wrong_scale, "attention", "differs from float32 by"),
        ("fused_attention", blind_to_masks, "attention", "(key mask, 3x16x4x8, float32) differs"),
        ("fused_rotate", wrong_gradient, "rotary", "differs from float32 by"),
        ("fused_swiglu", missing, "swiglu", "fails: npu_swiglu: not in libopapi.so: the plain"),
        ("fused_unit_rms", not_a_number, "rms_norm", "differs from float32 by nan"),
    ],
)
def test_a_kernel_that_is_wrong_is_told_and_not_used(monkeypatch, name, broken, kernel, says):
    monkeypatch.setattr(ops, name, broken)
    kernels, told = choose("auto")
    assert kernels == dataclasses.replace(ops.FUSED, **{kernel: False})
    assert told
    assert all(says in line and "the plain one is used" in line for line in told)
    assert choose("fused") == (ops.FUSED, [])


@needs_npu
def test_what_the_kernel_does_not_take_falls_back_to_the_plain_one():
    """Heads wider than the rotary kernel allows."""
    wide = {"d_model": 1792, "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 64}
    kernels, told = choose("auto", **wide)
    assert not kernels.rotary
    assert not kernels.attention  # at most 768 channels
    assert "head dimension below 896" in told[0]


def released_rms(x, weight, eps):
    """The published order: to float32, normalise, back to the type of x, then scale there."""
    wide = x.float()
    unit = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight.to(x.dtype) * unit.to(x.dtype)


@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=needs_npu)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rms_norm_rounds_before_it_scales(fused, dtype):
    norm = Norm(TINY, ComputeConfig(), 64).to(DEVICE)
    norm.kernels = ops.Kernels(rms_norm=fused)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5, generator=torch.Generator(DEVICE).manual_seed(0))
    x = normal(5, 64, dtype=dtype)
    expected = released_rms(x, norm.weight, TINY.rms_norm_eps)
    found = norm(x)
    assert torch.equal(found, expected)
    other_order = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True)) * norm.weight
    assert not torch.equal(found, other_order.to(dtype))  # the test can tell the orders apart


@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=needs_npu)])
def test_rotation_in_bfloat16_is_computed_in_float32(fused):
    positions = torch.arange(4000, 4016, device=DEVICE)[None]
    turn = rotation(positions, 8, 500000.0)
    kernels = ops.Kernels(rotary=fused)
    x = normal(2, 16, 4, 8, dtype=torch.bfloat16)
    found = rotate(x, turn, full_precision=True, kernels=kernels)
    exact = rotate(x.float(), turn, full_precision=True)
    assert torch.equal(found, exact.to(torch.bfloat16))
    narrow = rotate(x, turn, full_precision=False, kernels=kernels)
    cos, sin = (part.bfloat16() for part in turn)
    x1, x2 = x.chunk(2, -1)
    released = torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)
    assert torch.equal(narrow, released)
    assert not torch.equal(narrow, found)


@needs_npu
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("rows", ["all", "ragged", "blind"])
def test_fused_attention_equals_two_products(n_kv_heads, rows):
    q, k, v = (normal(3, 8, heads, 16, seed=heads) for heads in (4, n_kv_heads, n_kv_heads))
    visible = torch.arange(8, device=DEVICE) < put(np.array([8, 5, 3]))[:, None]
    visible = None if rows == "all" else visible[:, None, None].clone()
    if rows == "blind":
        visible[2] = False
    results = []
    for kernels in (ops.PLAIN, ops.FUSED):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attend(*leaves, visible=visible, kernels=kernels)
        seen = out[:2] if rows == "blind" else out  # nobody defines a row without keys
        results.append([seen, *torch.autograd.grad(seen.sin().sum(), leaves)])
        assert torch.isfinite(out).all()
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(get(a), get(b), atol=2e-6)


@needs_npu
def test_attention_dropout_follows_the_seed_of_the_device():
    q = normal(2, 8, 4, 16)

    def run(seed):
        torch.manual_seed(seed)
        return attend(q, q, q, kernels=ops.FUSED, dropout_rate=0.5)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_the_mask_of_the_fused_kernel_hides_has_a_row_a_query_and_is_made_once():
    visible = torch.tensor([[[[True, False, True]]], [[[True, True, True]]]], device=DEVICE)
    hidden = ops.hidden_keys(visible, 2, 4)
    assert hidden.shape == (2, 1, 4, 3)
    assert hidden.is_contiguous()
    assert torch.equal(hidden[:, :, 2], ~visible[:, :, 0])
    assert ops.hidden_keys(visible, 2, 4) is hidden
    assert ops.hidden_keys(visible, 2, 1).shape == (2, 1, 1, 3)
    before = len(ops._HIDDEN)
    del visible
    gc.collect()
    assert len(ops._HIDDEN) == before - 1


@needs_npu
def test_the_device_refuses_what_hardware_would_refuse_or_do_slowly():
    from tests.ascend_sim.ascend_sim import TypeOnNpuError

    x = torch.ones(4, 4, device=DEVICE)
    with pytest.raises(TypeOnNpuError, match="float64"):
        x.double() * 2
    with pytest.raises(TypeOnNpuError, match="bfloat16 in aten.sort"):
        x.bfloat16().sort()
    with pytest.raises(RuntimeError, match="TORCH_NPU_FALLBACK_CPU_DISABLE"):
        torch.lgamma(x)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(4, 4)
    import torch_npu

    q = normal(1, 8, 4, 16)
    seen = torch.ones(8, 8, dtype=torch.bool, device=DEVICE)
    for mask in (seen[0], seen.float(), seen[None, None, :1], seen):  # the last hides everything
        with pytest.raises(ValueError, match="not accepted by the Ascend operator"):
            torch_npu.npu_fusion_attention(q, q, q, 4, "BSND", atten_mask=mask)


@needs_npu
def test_memory_of_a_dry_run_is_that_of_a_real_one():
    from npu_backend.diffusion.chunked import chunked_cross_entropy
    from npu_backend.models.mask_predictor import MaskPredictor
    from tests.ascend_sim.ascend_sim import dry_run

    def peak():
        torch.npu.empty_cache()
        before = torch.npu.memory_allocated()
        torch.npu.reset_peak_memory_stats()
        model = MaskPredictor(TINY, kernels=ops.FUSED).to(DEVICE)
        tokens = torch.zeros((2, 16), dtype=torch.int64, device=DEVICE)
        weights = torch.ones(32, device=DEVICE)
        rows = model.hidden(tokens).flatten(0, 1), model.head_weight, tokens.flatten(), weights
        chunked_cross_entropy(*rows, counted=32).loss.backward()
        return torch.npu.max_memory_allocated() - before

    real = peak()
    with dry_run():
        assert peak() == real
