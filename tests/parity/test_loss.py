"""Both losses, their weights and their terms agree between JAX, torch and the published values."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxllada.diffusion.chunked as jax_chunked
import jaxllada.diffusion.loss as jax_loss
import npu_backend.diffusion.chunked as torch_chunked
import npu_backend.diffusion.loss as torch_loss
from tests.jax.golden import DENSE, dense_values
from tests.parity.models import both, tensor

GOLDEN = dense_values()
TOKENS, IS_MASKED, RATE = GOLDEN["loss_x0"], GOLDEN["loss_masked"], GOLDEN["loss_p"]
LENGTHS = GOLDEN["sft_prompt_lengths"]


@pytest.fixture(scope="module")
def models():
    return both(DENSE)


@pytest.mark.parametrize("kind", ["pretrain", "sft"])
def test_losses_on_full_logits_agree(models, kind):
    ours, mirror = models
    answer = np.arange(TOKENS.shape[1]) >= LENGTHS[:, None]
    hides = IS_MASKED & answer if kind == "sft" else IS_MASKED
    noisy = np.where(hides, mirror.config.mask_id, TOKENS)
    arguments = (TOKENS, IS_MASKED, RATE) + ((LENGTHS,) if kind == "sft" else ())
    count = len(TOKENS) if kind == "sft" else TOKENS.size
    name = "sft_loss" if kind == "sft" else "masked_diffusion_loss"
    a = getattr(jax_loss, name)(ours(noisy), *map(jnp.asarray, arguments))
    with torch.no_grad():
        b = getattr(torch_loss, name)(mirror(tensor(noisy)), *map(tensor, arguments))
    assert float(a) == pytest.approx(float(b), rel=2e-6)
    assert float(b) / count == pytest.approx(float(GOLDEN[f"{kind}_loss"]), rel=1e-5)


@pytest.mark.parametrize("norm", ["token", "sequence", "batch"])
def test_weights_of_the_loss_agree(norm):
    rng = np.random.default_rng(0)
    maskable = rng.random((2, 4, 9)) < 0.6
    maskable[0, 1] = False
    is_masked = rng.random((2, 4, 9)) < 0.5
    rate = rng.uniform(0.1, 1, (2, 4)).astype(np.float32)
    a = jax_loss.loss_weights(is_masked, rate, maskable, norm)
    b = torch_loss.loss_weights(tensor(is_masked), tensor(rate), tensor(maskable), norm)
    np.testing.assert_allclose(np.asarray(a), b.numpy(), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_terms_and_hits_of_the_chunked_loss_agree(dtype):
    rng = np.random.default_rng(0)
    hidden, head, bias = (rng.normal(size=s).astype(np.float32) for s in ((60, 16), (37, 16), 37))
    targets = rng.integers(0, 37, 60).astype(np.int32)
    weights = (rng.random(60) * (rng.random(60) < 0.5)).astype(np.float32)
    a = jax_chunked.chunked_cross_entropy(
        jnp.asarray(hidden, dtype), *map(jnp.asarray, (head, targets, weights)),
        head_bias=jnp.asarray(bias), chunk=7,
    )  # fmt: skip
    b = torch_chunked.chunked_cross_entropy(
        tensor(hidden).to(getattr(torch, dtype)), tensor(head), tensor(targets), tensor(weights),
        head_bias=tensor(bias), chunk=11,
    )  # fmt: skip
    np.testing.assert_allclose(np.asarray(a.loss), b.loss.numpy(), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(a.nll), b.nll.numpy(), atol=2e-6, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(a.is_correct), b.is_correct.numpy())
