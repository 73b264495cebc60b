"""The likelihood of an answer against golden values, a slow loop and exhaustive enumeration."""

import dataclasses
import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxllada import convert
from jaxllada.common import drawing
from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.errors import UserError
from jaxllada.common.likelihood import Round, mask_round, mask_rounds
from jaxllada.common.scores import Question
from jaxllada.diffusion.likelihood import log_likelihood, mean_log_likelihood, read_batch, score
from jaxllada.engine import JaxEngine
from tests.jax.golden import DENSE, dense_values
from tests.jax.sampling_oracle import TableModel

PROMPT, ANSWER = [17, 301, 44, 5, 9], [260, 8, 77, 12, 400, 3, 90]


@pytest.fixture(scope="module")
def model():
    return convert.load(DENSE)


def log_softmax(logits):
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits - logits.max()).sum(-1, keepdims=True)) - logits.max()


@jax.jit
def padded_logits(model, tokens, visible, seen):
    return model(tokens, visible, attention_bias=seen)


def full_logits(model, canvas, seen=None):
    """Logits of one row, padded to one length for all so that the oracle compiles once."""
    if isinstance(model, TableModel):
        return np.asarray(model(np.asarray(canvas, np.int32)[None])[0], np.float64)
    length, room = len(canvas), 64
    tokens = np.pad(np.asarray(canvas, np.int32), (0, room - length))
    bias = np.ones((room, room), bool)
    if seen is not None:
        bias[:length, :length] = seen
    visible = np.arange(room) < length
    found = padded_logits(model, tokens[None], visible[None], bias[None, None])
    return np.asarray(found[0, :length], np.float64)


def slow_mean(model, prompt, answer, rounds, cfg_scale=0.0):
    """Eq. 6 on full logits, one masked copy at a time."""
    values = []
    mask_id = model.config.mask_id
    for is_masked, counts in rounds:
        for row, count in zip(is_masked, counts, strict=True):
            canvas = np.concatenate([prompt, np.where(row, mask_id, answer)]).astype(np.int32)
            logits = full_logits(model, canvas)
            if cfg_scale:
                hidden = np.where(np.arange(len(canvas)) < len(prompt), mask_id, canvas)
                without = full_logits(model, hidden)
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


QUESTIONS = [
    Question([5, 6, 7], ([1, 2], [3])),
    Question(PROMPT * 4, (ANSWER, [*ANSWER, 11, 12], [8])),
    Question([], ([44, 9, 301, 17],)),
]


@pytest.mark.parametrize("cfg_scale", [0.0, 1.0])
def test_questions_of_all_lengths_in_one_call_score_as_each_on_its_own(model, cfg_scale):
    """Rows of a call are padded on the left; a slow loop reads each answer by itself."""
    config = LikelihoodConfig(mc_num=8, batch_size=4, cfg_scale=cfg_scale, rows_per_call=64, seed=5)
    found = score(model, QUESTIONS, config, first=2)
    for number, (question, result) in enumerate(zip(QUESTIONS, found, strict=True), 2):
        for option, value in zip(question.options, result.options, strict=True):
            rounds = [mask_round(len(option), config, r, drawing=256 * number) for r in range(2)]
            expected = slow_mean(model, question.prompt, option, rounds, cfg_scale)
            np.testing.assert_allclose(value.value, expected, rtol=2e-5)
    assert len(found[1].options) == 3


def test_the_engine_and_question_0_agree_with_log_likelihood(model):
    config = LikelihoodConfig(mc_num=8, batch_size=4)
    question = Question(PROMPT, (ANSWER,))
    found = JaxEngine(model).score([question], config)[0].options[0]
    assert found.value == log_likelihood(model, PROMPT, ANSWER, config)
    assert found.stderr > 0
    assert found.nfe <= found.n == 8


def block_causal_mean(model, prompt, answer, rounds, block_length):
    """Eq. 6 with full logits under an attention mask written out entry by entry."""
    values, length = [], len(prompt) + len(answer)
    block = [(i - len(prompt)) // block_length for i in range(length)]
    seen = np.array([[block[k] <= block[q] for k in range(length)] for q in range(length)])
    for is_masked, counts in rounds:
        for row, count in zip(is_masked, counts, strict=True):
            canvas = np.concatenate([prompt, np.where(row, model.config.mask_id, answer)])
            logits = full_logits(model, canvas, seen)
            terms = log_softmax(logits)[len(prompt) + np.arange(len(answer)), answer]
            values.append(terms[row].sum() * len(answer) / count)
    return np.mean(values)


@pytest.fixture
def always_reuse(monkeypatch):
    """Prompts are reused however little that saves."""
    monkeypatch.setattr(drawing, "LEAST_GAIN", 0)


@pytest.mark.usefixtures("always_reuse")
@pytest.mark.parametrize("reuse", ["none", "prompt"])
def test_block_causal_likelihood_is_exact_with_and_without_reuse_of_the_prompt(model, reuse):
    config = LikelihoodConfig(
        mc_num=8, batch_size=8, attention="block_causal", block_length=3, reuse=reuse
    )
    questions = [Question(PROMPT, (ANSWER,)), Question(PROMPT * 2, (ANSWER[:4],))]
    found = score(model, questions, config)
    for number, (question, result) in enumerate(zip(questions, found, strict=True)):
        answer = question.options[0]
        rounds = [mask_round(len(answer), config, 0, drawing=256 * number)]
        expected = block_causal_mean(model, question.prompt, answer, rounds, 3)
        np.testing.assert_allclose(result.options[0].value, expected, rtol=2e-5)
        if reuse == "prompt":
            assert abs(result.options[0].reuse_error) < 1e-4


@pytest.mark.usefixtures("always_reuse")
def test_reuse_of_the_prompt_is_off_by_the_error_it_tells(model):
    """Keys and values of a prompt that saw no answer token are other ones, where all see all."""
    config = LikelihoodConfig(method="exact", mc_num=32, batch_size=32)
    question = Question(PROMPT, (ANSWER,))
    exact = score(model, [question], config)[0].options[0]
    fast = score(model, [question], dataclasses.replace(config, reuse="prompt"))[0].options[0]
    off = fast.value - exact.value
    assert abs(off) > 1e-4
    assert abs(fast.reuse_error - off) < 5 * fast.reuse_stderr
    # With everything hidden nothing differs.
    lone = Question(PROMPT, (ANSWER[:1],))
    values = [
        score(model, [lone], dataclasses.replace(config, reuse=reuse))[0].options[0].value
        for reuse in ("none", "prompt")
    ]
    np.testing.assert_allclose(*values, rtol=1e-5)


def test_an_autoregressive_model_is_told_where_its_likelihood_is(model):
    causal = SimpleNamespace(config=SimpleNamespace(is_causal=True, rows=512, mask_id=1))
    with pytest.raises(UserError, match="use CausalEngine.log_likelihood"):
        score(causal, [Question([1], ([2],))])
