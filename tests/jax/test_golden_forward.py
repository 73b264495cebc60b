"""The forward pass and the losses equal those of the released PyTorch code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllada.convert import load
from jaxllada.diffusion.chunked import chunked_cross_entropy
from jaxllada.diffusion.loss import cross_entropy, loss_weights, masked_diffusion_loss, sft_loss
from tests.jax.golden import DENSE, VARIANT_CONFIGS, dense_values, write_variant

GOLDEN = dense_values()


@pytest.fixture(scope="module")
def model():
    return load(DENSE)


@pytest.fixture(scope="module")
def loss_logits(model):
    noisy = jnp.where(GOLDEN["loss_masked"], model.config.mask_id, GOLDEN["loss_x0"])
    return jax.jit(lambda model, tokens: model(tokens))(model, noisy)


def test_logits_equal_the_released_model(model):
    logits = model(GOLDEN["fwd_ids"])
    np.testing.assert_allclose(logits, GOLDEN["fwd_logits"], atol=2e-4, rtol=0)


def test_logits_under_left_padding_equal_the_released_model(model):
    mask = GOLDEN["fwdmask_attention_mask"]
    logits = model(GOLDEN["fwd_ids"], mask)
    seen = mask.astype(bool)
    np.testing.assert_allclose(logits[seen], GOLDEN["fwdmask_logits"][seen], atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", VARIANT_CONFIGS)
def test_every_supported_field_computes_what_the_released_class_computes(name, tmp_path):
    golden = write_variant(name, tmp_path)
    model = load(tmp_path)
    ids, mask, bias = golden["ids"], golden["mask"], golden["bias"]
    forward = jax.jit(lambda m, *args, **kwargs: m(*args, **kwargs))
    seen = mask.astype(bool)
    close = {"atol": 3e-5, "rtol": 1e-5}  # float32 sums in another order, logits up to about 20
    np.testing.assert_allclose(forward(model, ids), golden["logits"], **close)
    np.testing.assert_allclose(
        forward(model, ids, mask)[seen], golden["logits_mask"][seen], **close
    )
    np.testing.assert_allclose(
        forward(model, ids, attention_bias=bias), golden["logits_bias"], **close
    )
    both = forward(model, ids, mask, attention_bias=bias > -1)
    np.testing.assert_allclose(both[seen], golden["logits_both"][seen], **close)


def test_pretraining_loss_equals_the_published_one(loss_logits):
    total = masked_diffusion_loss(
        loss_logits, GOLDEN["loss_x0"], GOLDEN["loss_masked"], GOLDEN["loss_p"]
    )
    np.testing.assert_allclose(total / GOLDEN["loss_x0"].size, GOLDEN["pretrain_loss"], rtol=1e-5)


def test_fine_tuning_loss_equals_the_published_one(model):
    lengths = GOLDEN["sft_prompt_lengths"]
    tokens, is_masked = GOLDEN["loss_x0"], GOLDEN["loss_masked"]
    answer = np.arange(tokens.shape[1]) >= lengths[:, None]
    logits = model(np.where(is_masked & answer, model.config.mask_id, tokens))
    total = sft_loss(logits, tokens, is_masked, GOLDEN["loss_p"], lengths)
    np.testing.assert_allclose(total / len(tokens), GOLDEN["sft_loss"], rtol=1e-5)
    weights = loss_weights(is_masked, GOLDEN["loss_p"], answer, "sequence")
    by_weights = np.sum(weights * cross_entropy(logits, tokens))
    np.testing.assert_allclose(by_weights, GOLDEN["sft_loss"], rtol=1e-5)


def test_production_loss_equals_the_published_one(model):
    tokens, is_masked = jnp.asarray(GOLDEN["loss_x0"]), jnp.asarray(GOLDEN["loss_masked"])
    hidden = model.hidden(jnp.where(is_masked, model.config.mask_id, tokens))
    weights = loss_weights(is_masked, jnp.asarray(GOLDEN["loss_p"]), jnp.ones_like(is_masked))
    out = chunked_cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]),
        model.head_weight,
        tokens.reshape(-1),
        weights.reshape(-1),
        chunk=48,
    )
    np.testing.assert_allclose(out.loss, GOLDEN["pretrain_loss"], rtol=1e-5)
