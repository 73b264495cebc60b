"""The likelihood of an answer against golden values, a slow loop and exhaustive enumeration."""

import itertools

import jax
import numpy as np
import pytest

from jaxllada import convert
from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.errors import UserError
from jaxllada.common.likelihood import Round, mask_rounds
from jaxllada.diffusion.likelihood import log_likelihood, mean_log_likelihood, read_batch
from tests.jax.golden import DENSE, dense_values
from tests.jax.sampling_oracle import TableModel

PROMPT, ANSWER = [17, 301, 44, 5, 9], [260, 8, 77, 12, 400, 3, 90]


@pytest.fixture(scope="module")
def model():
    return convert.load(DENSE)


def log_softmax(logits):
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits - logits.max()).sum(-1, keepdims=True)) - logits.max()


def slow_mean(model, prompt, answer, rounds, cfg_scale=0.0):
    """Eq. 6 on full logits, one masked copy at a time."""
    values = []
    mask_id = model.config.mask_id
    for is_masked, counts in rounds:
        for row, count in zip(is_masked, counts, strict=True):
            canvas = np.concatenate([prompt, np.where(row, mask_id, answer)]).astype(np.int32)
            logits = np.asarray(model(canvas[None])[0], np.float64)
            if cfg_scale:
                hidden = np.where(np.arange(len(canvas)) < len(prompt), mask_id, canvas)
                without = np.asarray(model(hidden[None])[0], np.float64)
                logits = without + (cfg_scale + 1) * (logits - without)
            terms = log_softmax(logits)[len(prompt) + np.arange(len(answer)), answer]
            values.append(terms[row].sum() * len(answer) / count)
    return np.mean(values)


def test_the_golden_estimate_is_met(model):
    values = dense_values()
    start = int(values["lik_prompt_len"])
    tokens = values["lik_seq"]
    rounds = [Round(values["lik_masks"][:, start:], values["lik_counts"])]
    found = mean_log_likelihood(model, tokens[:start], tokens[start:], rounds)
    np.testing.assert_allclose(found, values["lik_value"], rtol=1e-5)


@pytest.mark.parametrize("cfg_scale", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("prompt", [PROMPT, []], ids=["prompt", "no prompt"])
def test_the_estimate_equals_a_slow_loop_over_the_same_masks(model, prompt, cfg_scale):
    config = LikelihoodConfig(mc_num=8, batch_size=4, cfg_scale=cfg_scale, seed=3)
    expected = slow_mean(model, prompt, ANSWER, mask_rounds(len(ANSWER), config), cfg_scale)
    # Sums of some float32 cross-entropies; guidance adds the difference of two of them.
    found = log_likelihood(model, prompt, ANSWER, config)
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_the_estimate_is_unbiased():
    """The mean of many rounds against Eq. 6 with every set of hidden positions written out."""
    table = TableModel(seed=2)
    prompt, answer = np.array([3, 7]), np.array([4, 9, 1, 12])
    terms = []
    for count in range(1, 5):
        sets = list(itertools.combinations(range(4), count))
        masks = np.array([np.isin(np.arange(4), chosen) for chosen in sets])
        terms.append(slow_mean(table, prompt, answer, [Round(masks, np.full(len(sets), count))]))
    exact = np.mean(terms)
    config = LikelihoodConfig(mc_num=4, batch_size=4)
    values = [
        mean_log_likelihood(table, prompt, answer, mask_rounds(4, config, seed))
        for seed in range(400)
    ]
    assert abs(np.mean(values) - exact) < 4 * np.std(values) / 20
    assert np.std(values) > 0


def test_one_mask_is_exact_for_one_token(model):
    config = LikelihoodConfig(mc_num=1, batch_size=1)
    canvas = np.array([[*PROMPT, model.config.mask_id]], np.int32)
    exact = log_softmax(np.asarray(model(canvas)[0, -1]))[ANSWER[0]]
    for key in (None, jax.random.key(1)):
        found = log_likelihood(model, PROMPT, ANSWER[:1], config, key)
        np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_a_key_draws_other_masks_and_a_seed_repeats_them(model):
    config = LikelihoodConfig(mc_num=4, batch_size=4)
    values = {
        log_likelihood(model, PROMPT, ANSWER, config, key)
        for key in (None, None, jax.random.key(0), jax.random.key(1), jax.random.key(1))
    }
    assert len(values) == 3


def test_answers_of_similar_length_share_one_compilation(model):
    config = LikelihoodConfig(mc_num=4, batch_size=4)
    log_likelihood(model, PROMPT, ANSWER, config)
    compiled = read_batch._cache_size()
    for length in (1, 5, 16):
        log_likelihood(model, PROMPT[:2], [7] * length, config)
    assert read_batch._cache_size() == compiled


def test_wrong_input_is_told_before_anything_is_compiled(model):
    compiled = read_batch._cache_size()
    with pytest.raises(UserError, match="holds id 512"):
        log_likelihood(model, PROMPT, [512])
    assert read_batch._cache_size() == compiled
