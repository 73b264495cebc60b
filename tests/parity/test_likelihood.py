"""Both likelihood estimators: the same masks, so the same values; and the released mask counts."""

import numpy as np
import pytest
import torch

import jaxllada
import npu_backend
from jaxllada.common import drawing
from jaxllada.common.likelihood import Round, stratified_counts
from npu_backend.diffusion.likelihood import mean_log_likelihood
from tests.jax.golden import DENSE, dense_values

PROMPT, ANSWER = [17, 301, 44, 5, 9], [260, 8, 77, 12, 400, 3, 90]


@pytest.fixture(scope="module")
def models():
    return jaxllada.load(DENSE), npu_backend.load(DENSE)


@pytest.mark.parametrize("cfg_scale", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("prompt", [PROMPT, []], ids=["prompt", "no prompt"])
def test_both_backends_estimate_the_same_value(models, prompt, cfg_scale):
    config = jaxllada.LikelihoodConfig(mc_num=16, batch_size=4, cfg_scale=cfg_scale, seed=9)
    ours, theirs = (
        package.log_likelihood(model, prompt, ANSWER, config)
        for package, model in zip((jaxllada, npu_backend), models, strict=True)
    )
    np.testing.assert_allclose(theirs, ours, rtol=1e-5)


def test_the_golden_estimate_is_met(models):
    values = dense_values()
    start, tokens = int(values["lik_prompt_len"]), values["lik_seq"]
    rounds = [Round(values["lik_masks"][:, start:], values["lik_counts"])]
    found = mean_log_likelihood(models[1], tokens[:start], tokens[start:], rounds)
    np.testing.assert_allclose(found, values["lik_value"], rtol=1e-5)


def test_a_generator_draws_other_masks(models):
    config = npu_backend.LikelihoodConfig(mc_num=4, batch_size=4)
    values = {
        npu_backend.log_likelihood(models[1], PROMPT, ANSWER, config, generator)
        for generator in (None, None, *(torch.Generator().manual_seed(i) for i in (0, 1, 1)))
    }
    assert len(values) == 3


@pytest.mark.parametrize("batch", [1, 2, 4, 5, 8, 16, 32, 128])
def test_counts_are_those_of_the_release(batch):
    """`get_log_likelihood` of the release, with its float32 `linspace`."""
    for length in (1, 2, 3, 7, 18, 31, 64, 300):
        for start in {1, length // 2 + 1, length}:
            end = start + (batch - 1) * (length / batch)
            places = torch.round(torch.linspace(float(start), end, steps=batch)).long()
            expected = ((places - 1) % length) + 1
            np.testing.assert_array_equal(stratified_counts(start, length, batch), expected)


@pytest.fixture
def always_reuse(monkeypatch):
    """Prompts are reused however little that saves."""
    monkeypatch.setattr(drawing, "LEAST_GAIN", 0)


@pytest.mark.usefixtures("always_reuse")
@pytest.mark.parametrize(
    "options",
    [
        {"cfg_scale": 0.5, "padd_eos": True},
        {"method": "confidence", "greedy_check": True},
        {"method": "exact", "rows_per_call": 32},
        {"mc_num": 48, "stop_level": 0.8},
        {"reuse": "corrected", "cfg_scale": 1.0},
        {"attention": "block_causal", "block_length": 4, "reuse": "prompt"},
    ],
    ids=lambda options: " ".join(f"{key}={value}" for key, value in options.items()),
)
def test_both_backends_score_questions_alike(models, options):
    config = jaxllada.LikelihoodConfig(**{"mc_num": 16, "batch_size": 8} | options)
    questions = [
        jaxllada.Question(PROMPT, (ANSWER, ANSWER[:2], ANSWER[3:])),
        jaxllada.Question([9, 8], (ANSWER[2:6], ANSWER[:1])),
    ]
    ours, theirs = (
        package.score(model, questions, config)
        for package, model in zip((jaxllada, npu_backend), models, strict=True)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert (one.best, one.is_decided) == (other.best, other.is_decided)
        for a, b in zip(one.options, other.options, strict=True):
            np.testing.assert_allclose(b.value, a.value, rtol=1e-5)
            np.testing.assert_allclose(b.stderr, a.stderr, rtol=1e-3, atol=1e-5)
            assert (a.n, a.nfe, a.is_greedy) == (b.n, b.nfe, b.is_greedy)
