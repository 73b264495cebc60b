"""The torch engine: what every program sees of a model."""

import dataclasses

import numpy as np
import pytest
import torch

from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.engine import Engine
from jaxllada.common.errors import UserError
from npu_backend import engine as engine_module
from npu_backend.diffusion.likelihood import log_likelihood
from npu_backend.engine import TorchEngine
from npu_backend.ops import PLAIN
from npu_backend.sampling.generate import sample
from tests.npu.devices import DEVICE, IS_NPU

DENSE = "tests/golden/dense"
CONFIG = SamplingConfig(steps=4, gen_length=8, block_length=4, temperature=0.9)
PROMPTS = [[5, 6, 7], [300, 2], [8, 9, 10, 11, 12], [1]]


@pytest.fixture(scope="module")
def engine():
    return TorchEngine.from_folder(DENSE, device=DEVICE.type, ops="plain")


def test_answers_do_not_depend_on_how_prompts_are_batched(engine: Engine):
    together = [answer.tokens for answer in engine.generate(PROMPTS, CONFIG, seed=3)]
    alone = [
        engine.generate([prompt], CONFIG, seed=3, first_row=row)[0].tokens
        for row, prompt in enumerate(PROMPTS)
    ]
    assert together == alone
    assert together != [answer.tokens for answer in engine.generate(PROMPTS, CONFIG, seed=4)]


def test_a_greedy_answer_is_that_of_the_sampler(engine):
    greedy = dataclasses.replace(CONFIG, temperature=0)
    (answer,) = engine.generate([PROMPTS[2]], greedy)
    expected = sample(engine.model, [PROMPTS[2]], greedy).cpu()[0, 5:]
    np.testing.assert_array_equal(answer.tokens, expected)
    np.testing.assert_array_equal(answer.trace.tokens[0], expected)
    assert answer.nfe == 4


def test_updates_show_every_step_and_end_with_the_answer(engine):
    updates = []
    answers = engine.generate(PROMPTS, CONFIG, seed=1, on_update=updates.append)
    assert [(update.step, update.total_steps) for update in updates] == [
        (step, 4) for step in (1, 2, 3, 4)
    ]
    masks = [int((update.tokens == engine.config.mask_token_id).sum()) for update in updates]
    assert masks == [4 * count for count in (6, 4, 2, 0)]
    np.testing.assert_array_equal(updates[-1].tokens, [answer.tokens for answer in answers])
    quiet = engine.generate(PROMPTS, CONFIG, seed=1)
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in quiet]


def test_a_growing_answer_streams_as_far_as_it_reaches_and_stops_where_it_is_told(engine):
    config = dataclasses.replace(CONFIG, steps=2, gen_length=16, canvas="grow")
    updates = []
    (full,) = engine.generate(PROMPTS[:1], config, on_update=updates.append)
    assert [update.tokens.shape[1] for update in updates] == [4, 8, 8, 12, 12, 16, 16, 16]
    assert [update.step for update in updates] == list(range(1, 9))
    assert updates[-1].total_steps == full.nfe == 8
    assert (full.num_tokens, full.end) == (16, None)
    stop = next(token for token in full.tokens[4:] if token not in full.tokens[:4])
    place = full.tokens.index(stop)
    length = place // 4 * 4 + 4
    expected = full.tokens[:length] + [engine.config.eos_token_id] * (16 - length)
    (answer,) = engine.generate(PROMPTS[:1], config, should_stop=lambda tokens: stop in tokens)
    assert answer.tokens == expected
    assert (answer.num_tokens, answer.nfe) == (length, length // 2)
    by_id = dataclasses.replace(config, stop_token_ids=(stop,))
    (answer,) = engine.generate(PROMPTS[:1], by_id)
    assert answer.tokens == expected
    assert answer.num_tokens == place


def test_calls_of_a_batch_are_those_of_its_longest_answer(engine):
    config = dataclasses.replace(CONFIG, temperature=0)
    full = engine.generate(PROMPTS, config)
    first = full[0].tokens[:4]
    answers = engine.generate(PROMPTS, config, should_stop=lambda tokens: tokens[:4] == first)
    assert [answer.nfe for answer in answers] == [4] * 4
    assert answers[0].tokens == first + [engine.config.eos_token_id] * 4
    assert [answer.tokens for answer in answers[1:]] == [answer.tokens for answer in full[1:]]
    assert [answer.trace.num_steps for answer in answers] == [2, 4, 4, 4]


@pytest.mark.parametrize(
    "options",
    [
        {"cache": "dllm:3,2,0.5"},
        {"cache": "vicinity:2,2,5", "cfg_scale": 1.0},
        {"cache": "block_causal", "attention": "block_causal", "canvas": "grow", "steps": 2},
    ],
    ids=["dllm", "vicinity, guided", "block_causal"],
)
def test_what_caches_keep_stays_with_its_row_when_others_leave(engine, options):
    config = dataclasses.replace(CONFIG, **{"steps": 8, "gen_length": 16, **options})
    full = [answer.tokens for answer in engine.generate(PROMPTS, config)]
    leaving = [tokens[:4] for tokens in full[:2]]
    answers = engine.generate(PROMPTS, config, should_stop=lambda tokens: tokens[:4] in leaving)
    assert [answer.num_tokens for answer in answers] == [4, 4, 16, 16]
    assert [answer.tokens for answer in answers[2:]] == full[2:]
    for row, prompt in enumerate(PROMPTS):
        (alone,) = engine.generate([prompt], config, first_row=row)
        assert alone.tokens == full[row]


def test_likelihoods_are_those_of_the_estimator(engine):
    config = LikelihoodConfig(mc_num=4, batch_size=2, seed=5)
    expected = log_likelihood(engine.model, PROMPTS[2], PROMPTS[1], config)
    assert engine.log_likelihood(PROMPTS[2], PROMPTS[1], config) == expected < 0
    assert engine.log_likelihood([], PROMPTS[1], config) != expected


def test_weights_can_be_read_in_another_type():
    engine = TorchEngine.from_folder(DENSE, "bfloat16", device=DEVICE.type, ops="plain")
    assert engine.model.wte.dtype == torch.bfloat16
    assert engine.model.compute.dtype == "bfloat16"
    tokens = engine.generate([[1, 2, 3]], CONFIG)[0].tokens
    assert engine.config.mask_token_id not in tokens


def test_kernels_are_chosen_once_for_the_shapes_of_the_first_call(monkeypatch):
    asked = []

    def choose(mode, device, config, compute, *, batch, length):
        asked.append((mode, batch, length))
        return PLAIN

    monkeypatch.setattr(engine_module, "choose_kernels", choose)
    engine = TorchEngine.from_folder(DENSE, device=DEVICE.type)
    engine.generate(PROMPTS, dataclasses.replace(CONFIG, cfg_scale=1.0))
    engine.generate(PROMPTS[:1], CONFIG)
    assert asked == [("auto", 8, 5 + 8)]


@pytest.mark.skipif(not IS_NPU, reason="only NPUs have fused kernels")
def test_fused_kernels_give_the_tokens_of_plain_ones(engine):
    fused = TorchEngine.from_folder(DENSE, device="npu", ops="fused")
    for config in (CONFIG, dataclasses.replace(CONFIG, temperature=0, cfg_scale=1.0)):
        expected = [answer.tokens for answer in engine.generate(PROMPTS, config)]
        assert [answer.tokens for answer in fused.generate(PROMPTS, config)] == expected
    assert fused.model.kernels != PLAIN


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "at least one prompt"),
        ([[1] * 121], "prompt 0 has 121 tokens: with gen_length=8 that is 129, more than max_s"),
        ([[1], [2, 512]], "prompt 1 holds id 512 at position 1, outside the 512 rows"),
        ([[-1]], "prompt 0 holds id -1 at position 0"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(engine, prompts, message):
    with pytest.raises(UserError, match=message):
        engine.generate(prompts, CONFIG)


@pytest.mark.skipif(IS_NPU, reason="there is an NPU here")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "npu"}, "device=npu: torch_npu is not installed"),
        ({"device": "tpu"}, "device='tpu' is unknown"),
        ({"device": "cpu", "ops": "fused"}, "ops=fused: cpu has no fused kernels"),
    ],
)
def test_a_device_that_is_not_there_is_told_before_weights_are_read(options, message):
    with pytest.raises(UserError, match=message):
        TorchEngine.from_folder("nowhere", **options)
