"""The likelihood of an answer in torch, on the CPU or the simulated NPU, against a slow loop."""

import dataclasses

import numpy as np
import pytest
import torch

from jaxllada.common import drawing
from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.errors import UserError
from jaxllada.common.likelihood import Round, mask_round, mask_rounds
from jaxllada.common.scores import Question
from npu_backend import convert
from npu_backend.diffusion.likelihood import log_likelihood, mean_log_likelihood, score
from npu_backend.engine import TorchEngine
from npu_backend.models.mask_predictor import MaskPredictor
from tests.npu.devices import DEVICE, KERNELS
from tests.npu.table_model import logits_of

DENSE = "tests/golden/dense"
PROMPT, ANSWER = [17, 301, 44, 5, 9], [260, 8, 77, 12, 400, 3, 90]


@pytest.fixture(scope="module", params=KERNELS.values(), ids=KERNELS.keys())
def model(request):
    model = convert.load(DENSE, device=DEVICE)
    model.use(request.param)
    return model


def slow_mean(model, prompt, answer, rounds, cfg_scale=0.0):
    """Eq. 6 on full logits, one masked copy at a time, guided by their difference (Eq. 16)."""
    call, values = logits_of(model), []
    mask_id = model.config.mask_id
    for is_masked, counts in rounds:
        for row, count in zip(is_masked, counts, strict=True):
            canvas = np.concatenate([prompt, np.where(row, mask_id, answer)]).astype(np.int64)[None]
            everything = np.ones_like(canvas)
            logits = call(canvas, everything)[0].astype(np.float64)
            if cfg_scale:
                hidden = np.where(np.arange(canvas.shape[1]) < len(prompt), mask_id, canvas)
                without = call(hidden, everything)[0].astype(np.float64)
                logits = without + (cfg_scale + 1) * (logits - without)
            total = np.log(np.exp(logits - logits.max()).sum(-1)) + logits.max()
            places = len(prompt) + np.arange(len(answer))
            terms = logits[places, answer] - total[places]
            values.append(terms[row].sum() * len(answer) / count)
    return np.mean(values)


def test_the_golden_estimate_is_met(model):
    with np.load(f"{DENSE}/golden.npz") as values:
        start, tokens = int(values["lik_prompt_len"]), values["lik_seq"]
        rounds = [Round(values["lik_masks"][:, start:], values["lik_counts"])]
        expected = values["lik_value"]
    found = mean_log_likelihood(model, tokens[:start], tokens[start:], rounds)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("cfg_scale", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("prompt", [PROMPT, []], ids=["prompt", "no prompt"])
def test_the_estimate_equals_a_slow_loop_over_the_same_masks(model, prompt, cfg_scale):
    config = LikelihoodConfig(mc_num=8, batch_size=4, cfg_scale=cfg_scale, seed=3)
    expected = slow_mean(model, prompt, ANSWER, mask_rounds(len(ANSWER), config), cfg_scale)
    found = log_likelihood(model, prompt, ANSWER, config)
    # Sums of some float32 cross-entropies; guidance adds the difference of two of them.
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_tokens_may_be_tensors_and_the_generator_of_any_device(model):
    config = LikelihoodConfig(mc_num=4, batch_size=4)
    answer = torch.tensor(ANSWER, device=DEVICE)
    values = [
        log_likelihood(model, torch.tensor(PROMPT), answer, config, generator)
        for generator in (
            None,
            torch.Generator(DEVICE).manual_seed(0),
            torch.Generator(DEVICE).manual_seed(0),
        )
    ]
    assert values[0] == log_likelihood(model, PROMPT, ANSWER, config)
    assert values[1] == values[2] != values[0]


def test_dropout_is_off_and_the_mode_comes_back(model):
    config = dataclasses.replace(model.config, residual_dropout=0.5)
    dropping = MaskPredictor(config, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    before = log_likelihood(dropping, PROMPT, ANSWER)
    dropping.train()
    assert log_likelihood(dropping, PROMPT, ANSWER) == before
    assert dropping.training


def test_wrong_input_is_told(model):
    with pytest.raises(UserError, match="holds id 512"):
        log_likelihood(model, PROMPT, [512])


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


def test_the_engine_and_question_0_agree_with_log_likelihood(model):
    config = LikelihoodConfig(mc_num=8, batch_size=4)
    found = TorchEngine(model).score([Question(PROMPT, (ANSWER,))], config)[0].options[0]
    assert found.value == log_likelihood(model, PROMPT, ANSWER, config)
    assert found.stderr > 0
    assert found.nfe <= found.n == 8


@pytest.fixture
def always_reuse(monkeypatch):
    """Prompts are reused however little that saves."""
    monkeypatch.setattr(drawing, "LEAST_GAIN", 0)


@pytest.mark.usefixtures("always_reuse")
@pytest.mark.parametrize("cfg_scale", [0.0, 1.0])
def test_reuse_of_the_prompt_is_exact_under_block_causal_attention(model, cfg_scale):
    config = LikelihoodConfig(
        mc_num=8, batch_size=4, attention="block_causal", block_length=3, cfg_scale=cfg_scale
    )
    plain = score(model, QUESTIONS, config)
    reused = score(model, QUESTIONS, dataclasses.replace(config, reuse="prompt"))
    for one, other in zip(plain, reused, strict=True):
        for a, b in zip(one.options, other.options, strict=True):
            np.testing.assert_allclose(b.value, a.value, rtol=2e-5)
            assert abs(b.reuse_error) < 2e-4
    full = score(model, QUESTIONS, LikelihoodConfig(mc_num=8, batch_size=4, cfg_scale=cfg_scale))
    assert full[1].options[0].value != plain[1].options[0].value
