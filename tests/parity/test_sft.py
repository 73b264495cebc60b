"""Equation 5 through both training steps: the published value, and a slow oracle of every norm."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

import jaxllada.train.step as jax_step
import npu_backend.train.step as torch_step
from jaxllada.common.data.batches import Batch, BatchSource
from jaxllada.common.data.rows import RaggedRows, Row
from npu_backend.sharding import Mesh
from npu_backend.train.state import initial_state
from tests.jax.golden import DENSE, dense_values
from tests.parity.models import both

POLICIES = ("eos_supervised", "eos_capped:3", "ignore")


@pytest.fixture(scope="module")
def models():
    return both(DENSE)


@functools.cache
def compiled(graphdef, norm):
    return jax.jit(functools.partial(jax_step.loss_and_gradient, graphdef=graphdef, loss_norm=norm))


def in_jax(model, batch, norm):
    graphdef, params = nnx.split(model, nnx.Param)
    loss, counts, _ = compiled(graphdef, norm)(nnx.to_pure_dict(params), batch, None)
    return float(loss), counts.classes


def in_torch(model, batch, norm):
    objective, mesh = torch_step.Objective(model), Mesh(model.head_weight.device)
    state = initial_state(model, with_ema=False)
    loss, counts, _ = torch_step.loss_and_gradient(objective, state, batch, mesh, loss_norm=norm)
    return float(loss), counts.classes


def test_both_steps_give_the_published_loss(models):
    golden = dense_values()
    tokens, is_masked = golden["loss_x0"].astype(np.int32), golden["loss_masked"]
    answer = np.arange(tokens.shape[1]) >= golden["sft_prompt_lengths"][:, None]
    hidden = is_masked & answer
    noisy = np.where(hidden, models[0].config.mask_id, tokens).astype(np.int32)
    rate = golden["loss_p"].astype(np.float32)
    # Two micro-batches of two rows: the denominators are those of the whole batch.
    cut = [x.reshape(2, 2, *x.shape[1:]) for x in (tokens, noisy, hidden, rate, answer)]
    batch = Batch(*cut, None)
    for run, model in zip((in_jax, in_torch), models, strict=True):
        assert run(model, batch, "sequence")[0] == pytest.approx(golden["sft_loss"], rel=1e-5)


def batch_of(config, policy):
    rng = np.random.default_rng(1)
    rows = []
    for length, prompt in ((9, 3), (20, 6), (14, 2), (5, 4)):
        ids = rng.integers(10, 30, length).astype(np.int32)
        rows.append(Row(ids, np.arange(length) >= prompt))
    return BatchSource(
        RaggedRows(rows), seed=3, micro_batch=2, accumulation=2, max_length=40, shuffle=False,
        mask_id=config.mask_id, pad_id=config.pad_token_id, pad_policy=policy, pad_to_multiple=24,
    ).batch(0)  # fmt: skip


@pytest.mark.parametrize("norm", ["token", "sequence", "batch"])
def test_every_norm_and_pad_policy_agrees_with_a_slow_oracle(models, norm):
    """The oracle pads, counts and divides by hand, row by row, from torch's full logits."""
    lengths, prompts = (9, 20, 14, 5), (3, 6, 2, 4)
    for policy, padding in zip(POLICIES, (100, 3, 0), strict=True):
        batch = batch_of(models[0].config, policy)
        total, divisors = [], []
        for r, (length, prompt) in enumerate(zip(lengths, prompts, strict=True)):
            end = min(length + padding, max(lengths))
            a, b = divmod(r, 2)
            noisy = np.asarray(batch.noisy[a, b, :end])[None]
            logits = np.asarray(models[0](noisy)[0], np.float64)
            log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
            terms = [
                -log_p[i, batch.tokens[a, b, i]] / batch.mask_rate[a, b]
                for i in range(prompt, end)
                if batch.is_masked[a, b, i]
            ]
            assert not batch.is_masked[a, b, :prompt].any()
            assert not batch.is_masked[a, b, end:].any()
            total.append(sum(terms))
            divisors.append(end - prompt)
        expected = {
            "token": sum(total) / sum(divisors),
            "sequence": np.mean([x / n for x, n in zip(total, divisors, strict=True)]),
            "batch": sum(total) / 4,
        }[norm]
        (one, jax_classes), (other, torch_classes) = (
            run(model, batch, norm) for run, model in zip((in_jax, in_torch), models, strict=True)
        )
        assert one == pytest.approx(expected, rel=2e-5), policy
        assert other == pytest.approx(expected, rel=2e-5), policy
        for x, y in zip(jax_classes, torch_classes, strict=True):
            np.testing.assert_allclose(x, y.numpy(), rtol=1e-4, atol=1e-4)
        ends = np.asarray(jax_classes.masked)[1:]
        assert (ends.sum() > 0) == (policy != "ignore")
