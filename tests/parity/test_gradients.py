"""Every gradient of both losses agrees between JAX and torch, in float32, to 1e-5 of its norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxllada.diffusion.chunked as jax_chunked
import jaxllada.diffusion.loss as jax_loss
import npu_backend.diffusion.chunked as torch_chunked
import npu_backend.diffusion.loss as torch_loss
from tests.jax.golden import DENSE, write_variant
from tests.parity.models import assert_same_gradients, both, tensor


def batch(rows, length, vocab, mask_id, seed=0):
    """Tokens with ragged prompts and padding on the right, and noise."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab, (rows, length)).astype(np.int32)
    rate = rng.uniform(0.3, 1, rows).astype(np.float32)
    lengths = rng.integers(1, length // 2, rows)
    answer = np.arange(length) >= lengths[:, None]
    is_masked = (rng.random((rows, length)) < rate[:, None]) & answer
    visible = np.arange(length) < (length - np.arange(rows) % 3)[:, None]
    noisy = np.where(is_masked, mask_id, tokens)
    return tokens, noisy, is_masked, rate, lengths, visible.astype(np.int32)


def jax_gradient(model, tokens, noisy, is_masked, rate, lengths, visible, kind):
    def loss(model):
        if kind == "pretrain":
            hidden = model.hidden(noisy, visible) * model.logit_scale
            bias = model.head_bias
            weights = jax_loss.loss_weights(is_masked, rate, visible != 0)
            return jax_chunked.chunked_cross_entropy(
                hidden.reshape(-1, hidden.shape[-1]),
                model.head_weight,
                tokens.reshape(-1),
                weights.reshape(-1),
                head_bias=None if bias is None else bias * model.logit_scale,
                chunk=8,
            ).loss
        return jax_loss.sft_loss(model(noisy), tokens, is_masked, rate, lengths) / len(tokens)

    return jax.jit(jax.value_and_grad(loss))(model)


def torch_gradient(model, tokens, noisy, is_masked, rate, lengths, visible, kind):
    model.zero_grad()
    if kind == "pretrain":
        hidden, bias = model.hidden(noisy, visible) * model.logit_scale, model.head_bias
        weights = torch_loss.loss_weights(is_masked, rate, visible != 0)
        loss = torch_chunked.chunked_cross_entropy(
            hidden.flatten(0, 1),
            model.head_weight,
            tokens.flatten(),
            weights.flatten(),
            head_bias=None if bias is None else bias * model.logit_scale,
            chunk=8,
        ).loss
    else:
        loss = torch_loss.sft_loss(model(noisy), tokens, is_masked, rate, lengths) / len(tokens)
    loss.backward()
    return loss.item()


# Between them these set the fields that change what a gradient is.
VARIANTS = ("gqa", "tied", "qknorm", "ln_low", "gemma", "bias", "scale", "seqswiglu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [("dense", "pretrain"), ("dense", "sft"), *((v, "pretrain") for v in VARIANTS)],
)
def test_gradients_of_every_weight_agree(name, kind, tmp_path):
    folder = DENSE if name == "dense" else tmp_path
    if name != "dense":
        write_variant(name, folder)
    ours, mirror = both(folder)
    config = mirror.config
    arrays = batch(3, 16, config.vocab_size, config.mask_id)
    value, gradient = jax_gradient(ours, *map(jnp.asarray, arrays), kind)
    assert float(value) == pytest.approx(
        torch_gradient(mirror, *map(tensor, arrays), kind), rel=1e-5
    )
    assert_same_gradients(gradient, mirror, rtol=1e-5)
