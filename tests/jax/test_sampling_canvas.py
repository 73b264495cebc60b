"""Canvases that change: growing, adaptive, rows that end, batches that shrink."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxllada.common import sizing
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.errors import UserError
from jaxllada.sampling import generate
from jaxllada.sampling.generate import sample, sample_progress, sample_stepwise, sample_trace
from jaxllada.sampling.loop import advance
from tests.jax.sampling_oracle import TableModel
from tests.plain_canvas import (
    ending_table,
    plain_adaptive,
    plain_grow,
    plain_infill,
    pulled_logits,
    sloping_table,
)
from tests.plain_loop import plain_loop

EOS, MASK = TableModel.config.eos_token_id, TableModel.config.mask_token_id
PROMPT = np.array([[4, 8, 15, 16, 23]], np.int32)
FIXED = SamplingConfig(steps=12, gen_length=24, block_length=4, stop_at_eos=True)
GROW = dataclasses.replace(FIXED, steps=2, canvas="grow")
ADAPTIVE = dataclasses.replace(
    GROW, gen_length=48, canvas="adaptive:start=6,window=3,confidence=0.3"
)
# Prompts of one to five tokens, so that an end at one position is in different blocks.
RAGGED = np.array([[0] * (5 - n) + [3 * n + i for i in range(n)] for n in range(1, 6)], np.int32)
SEEN = np.array([[0] * (5 - n) + [1] * n for n in range(1, 6)])


def model_of(table, seed=3):
    model = TableModel(seed)
    model.table[...] = table
    return model


def logits_of(model):
    return lambda canvas, visible: np.array(model(canvas, visible))


@pytest.fixture
def placed(monkeypatch):
    """(rows, length) of every canvas that came to the device."""
    shapes, place = [], generate.JaxDevice.place

    def recorded(self, canvas, before):
        shapes.append(canvas.tokens.shape)
        return place(self, canvas, before)

    monkeypatch.setattr(generate.JaxDevice, "place", recorded)
    return shapes


@pytest.mark.parametrize(
    ("steps", "block_length", "slots"), [(2, 4, (0, 5, 10, 15)), (9, 4, (3, 11)), (1, 1, (0, 6))]
)
def test_growing_is_the_sampler_on_one_more_block_at_a_time(steps, block_length, slots):
    config = dataclasses.replace(GROW, steps=steps, block_length=block_length)
    lengths = set()
    for seed in range(len(slots)):
        model = model_of(ending_table(seed, slot=slots[seed]), seed)
        trace = sample_trace(model, PROMPT, config)
        expected, calls = plain_grow(logits_of(model), PROMPT, config, model.config, [EOS])
        length = expected.shape[1] - 5
        np.testing.assert_array_equal(trace.tokens[:, :length], expected[:, 5:])
        assert (trace.tokens[:, length:] == EOS).all()
        assert trace.num_steps == calls
        lengths.add(length)
    assert len(lengths) == len(slots)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_adaptive_lengths_are_those_of_the_slow_loop(seed):
    model = model_of(sloping_table(seed, place=10), seed)
    expected, lengths = plain_adaptive(logits_of(model), PROMPT, ADAPTIVE, model.config, [EOS])
    length = expected.shape[1] - 5
    progress = list(generate.sample_progress(model, PROMPT, ADAPTIVE))
    assert [part.columns for part in progress[:-1]] == lengths[1 : len(progress)]
    tokens = progress[-1].trace.tokens
    np.testing.assert_array_equal(
        tokens[:, :length], np.where(expected == MASK, EOS, expected)[:, 5:]
    )
    assert (tokens[:, length:] == EOS).all()
    # Each length that was tried first and each decision between blocks took a call.
    looks = 1 + (lengths[0] - 8) // 4 + len(lengths) - 1
    assert progress[-1].nfe == progress[-1].trace.num_steps + looks


def test_adaptive_lengths_grow_and_shrink_in_these_tests():
    found = {}
    for seed in range(4):
        model = model_of(sloping_table(seed, place=10), seed)
        _, lengths = plain_adaptive(logits_of(model), PROMPT, ADAPTIVE, model.config, [EOS])
        found[seed] = np.sign(np.diff(lengths))
    assert {-1, 0, 1} <= {int(sign) for signs in found.values() for sign in signs}


@pytest.mark.parametrize(
    ("config", "temperature"),
    [(FIXED, 0.0), (GROW, 1.0), (ADAPTIVE, 0.0)],
    ids=["fixed", "grow", "adaptive"],
)
def test_rows_of_a_batch_that_shrinks_are_those_of_rows_alone(config, temperature, placed):
    config = dataclasses.replace(config, temperature=temperature)
    table = sloping_table(3, 10) if config.canvas.startswith("adaptive") else ending_table(3, 7)
    model, keys = model_of(table), jax.random.split(jax.random.key(5), 5)
    together = sample_trace(model, RAGGED, config, SEEN, keys)
    batches = [rows for rows, _ in placed]
    assert batches == sorted(batches, reverse=True)
    assert min(batches) < 5
    for row, length in enumerate(range(1, 6)):
        alone = sample_trace(
            model, RAGGED[row : row + 1, 5 - length :], config, key=keys[row : row + 1]
        )
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])
        np.testing.assert_array_equal(together.order[row], alone.order[0])
        np.testing.assert_allclose(together.confidence[row], alone.confidence[0], rtol=1e-6)


def test_finished_rows_are_dropped_in_buckets(placed, monkeypatch):
    """The ends are in blocks 2, 2, 1, 1 and 1 (from 0) of the answers."""
    model = model_of(ending_table(3, 5))
    dropped = sample_trace(model, RAGGED, FIXED, SEEN)
    assert [rows for rows, _ in placed] == [5, 2]
    placed.clear()
    kept = list(sample_progress(model, RAGGED, FIXED, SEEN, drops_rows=False))[-1].trace
    assert [rows for rows, _ in placed] == [5, 5]
    monkeypatch.setattr(sizing, "LEAST_SAVING", 64)
    placed.clear()
    rare = sample_trace(model, RAGGED, FIXED, SEEN)
    assert [rows for rows, _ in placed] == [5, 5]
    for other in (kept, rare):
        np.testing.assert_array_equal(other.tokens, dropped.tokens)
        np.testing.assert_array_equal(other.order, dropped.order)


def test_a_run_without_decisions_is_one_piece_on_the_device(monkeypatch):
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        return advance(*args, **kwargs)

    monkeypatch.setattr(generate, "advance", counted)
    model = model_of(ending_table(3, 6))
    for config, rows in [(FIXED, 1), (dataclasses.replace(FIXED, stop_at_eos=False), 5)]:
        calls.clear()
        sample(model, RAGGED[:rows], config, SEEN[:rows])
        assert len(calls) == 1
    calls.clear()
    sample(model, RAGGED, FIXED, SEEN)
    assert len(calls) == 3


def test_shapes_are_compiled_once_each(placed):
    config = dataclasses.replace(GROW, gen_length=160, block_length=16)
    model = model_of(ending_table(3, -5))  # nowhere in these answers
    before = advance._cache_size()
    sample(model, RAGGED[:2], config, SEEN[:2])
    lengths = [length for _, length in placed]
    assert len(lengths) == 10
    assert sorted(set(lengths)) == [64, 128, 192]
    assert advance._cache_size() == before + 3
    sample(model, RAGGED[2:4], config, SEEN[2:4])
    assert advance._cache_size() == before + 3


@pytest.mark.parametrize("config", [FIXED, GROW], ids=["fixed", "grow"])
def test_own_stop_ids_and_functions_end_rows_after_their_block(config):
    model = model_of(ending_table(3, 23))
    full = sample_trace(model, PROMPT, config).tokens[0]
    stop = int(full[6])
    length = (int(np.argmax(full == stop)) // 4 + 1) * 4
    by_id = sample_trace(model, PROMPT, dataclasses.replace(config, stop_token_ids=(stop,)))
    asked = []

    def should_stop(tokens):
        asked.append(list(tokens))
        return stop in tokens

    (*_, last) = generate.sample_progress(model, PROMPT, config, should_stop=should_stop)
    for tokens in (by_id.tokens[0], last.trace.tokens[0]):
        np.testing.assert_array_equal(tokens[:length], full[:length])
        assert (tokens[length:] == EOS).all()
    assert asked == [full[:end].tolist() for end in range(4, length + 1, 4)]


@pytest.mark.parametrize("config", [GROW, ADAPTIVE], ids=["grow", "adaptive"])
@pytest.mark.parametrize("steps_per_piece", [1, 3])
def test_pieces_of_changing_canvases_give_the_same_tokens(config, steps_per_piece):
    model = model_of(sloping_table(0, 10))
    whole = sample_trace(model, PROMPT, config)
    pieces = list(sample_stepwise(model, PROMPT, config, steps_per_piece=steps_per_piece))
    assert len(pieces) >= whole.num_steps / steps_per_piece
    for piece in pieces[:-1]:
        shown = piece.order >= 0
        np.testing.assert_array_equal(piece.tokens[shown], whole.tokens[shown])
    np.testing.assert_array_equal(pieces[-1].order, whole.order)


INFILL = SamplingConfig(steps=2, gen_length=4, block_length=4, infill=True, stop_at_eos=True)
GAPS = np.array(
    [[4, MASK, EOS, MASK, MASK, 6, MASK], [0, 0, 1, 2, 3, MASK, 4], [0, 7, 8, 9, 10, 11, 12]],
    np.int32,
)
GAPS_SEEN = np.array([[1] * 7, [0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1]])


@pytest.mark.parametrize(("gen_length", "steps"), [(4, 2), (0, 1), (8, 9)])
def test_gaps_of_a_prompt_are_filled_block_by_block(gen_length, steps):
    config = dataclasses.replace(INFILL, gen_length=gen_length, steps=steps)
    model = model_of(ending_table(3, 40))
    trace = sample_trace(model, GAPS[:1], config)
    expected = plain_infill(logits_of(model), GAPS[:1], config, model.config)
    np.testing.assert_array_equal(np.concatenate([trace.prompt, trace.tokens], axis=1), expected)
    np.testing.assert_array_equal(sample(model, GAPS[:1], config), expected)
    # Given tokens are there from the first frame on, and are no steps.
    given = np.concatenate([GAPS[:1], np.full((1, gen_length), MASK)], axis=1)
    np.testing.assert_array_equal(trace.frame(0), given)
    np.testing.assert_array_equal(trace.frame(trace.num_steps), expected)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_with_gaps_do_not_depend_on_other_rows(temperature):
    config = dataclasses.replace(INFILL, temperature=temperature)
    model, keys = model_of(ending_table(3, 9)), jax.random.split(jax.random.key(6), 3)
    together = np.array(sample(model, GAPS, config, GAPS_SEEN, keys))
    assert not (together[GAPS_SEEN.sum(1) == 7] == MASK).any()
    for row, length in enumerate(GAPS_SEEN.sum(1)):
        alone = sample(model, GAPS[row : row + 1, 7 - length :], config, key=keys[row : row + 1])
        np.testing.assert_array_equal(together[row, 7 - length :], np.array(alone)[0])


def test_an_end_token_of_the_prompt_ends_nothing_under_infill():
    """It stands before the second gap; the end that is predicted behind the prompt counts."""
    config = dataclasses.replace(INFILL, gen_length=12)
    model = model_of(ending_table(3, 5))  # position 10, in the first block behind the prompt
    trace = sample_trace(model, GAPS[:1], config)
    tokens = np.concatenate([trace.prompt, trace.tokens], axis=1)[0]
    assert (tokens[:7] != MASK).all()
    assert tokens[10] == EOS
    assert (tokens[11:] == EOS).all()
    assert trace.num_steps == 5


@pytest.mark.parametrize("block_length", [4, 12])
def test_answers_are_pulled_to_the_end_of_thinking(block_length):
    config = dataclasses.replace(
        FIXED, gen_length=24, steps=24, block_length=block_length, stop_at_eos=False,
        end_think_token_ids=(7, 9, 7, 8), end_think_logit_boost=64, end_think_boost_power=1,
    )  # fmt: skip
    model, seen = model_of(ending_table(3, 40)), []
    logits = pulled_logits(logits_of(model), config, 5, seen)
    (*_, expected) = plain_loop(logits, PROMPT, config, model.config)
    trace = sample_trace(model, PROMPT, config)
    np.testing.assert_array_equal(trace.tokens, expected[:, 5:])
    text = " ".join(map(str, expected[0, 5:]))
    assert "7 9 7 8" in text
    assert {token for _, token in seen} == {7, 9, 8}
    plain = dataclasses.replace(config, end_think_token_ids=(), end_think_logit_boost=0)
    assert "7 9 7 8" not in " ".join(map(str, sample_trace(model, PROMPT, plain).tokens[0]))


def test_the_pull_works_on_growing_canvases_and_row_by_row():
    config = dataclasses.replace(
        GROW, steps=4, end_think_token_ids=(7, 9), end_think_logit_boost=64, stop_token_ids=(9,)
    )
    model = model_of(ending_table(3, 40))
    together = sample_trace(model, RAGGED, config, SEEN).tokens
    for row, length in enumerate(range(1, 6)):
        alone = sample_trace(model, RAGGED[row : row + 1, 5 - length :], config).tokens
        np.testing.assert_array_equal(together[row], alone[0])
        assert "7 9" in " ".join(map(str, alone[0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"canvas": "adaptive", "logits_eos_inf": True},
            "canvas=adaptive looks for .* logits_eos_inf=true",
        ),
        ({"canvas": "adaptive", "compat": "official-2025"}, "compat=official-2025"),
        ({"canvas": "grow", "cache": "dllm"}, "canvas=grow changes .* cache=dllm"),
        ({"canvas": "grow", "infill": True}, "canvas=grow has no room for infill=true"),
        ({"compat": "official-2025", "infill": True}, "compat=official-2025"),
        ({"end_think_logit_boost": 3.0}, "end_think_token_ids"),
        ({"end_think_token_ids": (4,)}, "end_think_logit_boost=0.0"),
        ({"gen_length": 0}, "gen_length=0 must be at least 1"),
        ({"canvas": "adaptive:low=0.7"}, "low=0.7 must be at most high=0.6"),
        ({"canvas": "adaptive:start=0"}, "start=0 must be at least 1"),
        ({"canvas": "grows"}, "did you mean 'grow'"),
        ({"stop_token_ids": (-1,)}, "stop_token_ids"),
        ({"stop_token_ids": 3}, "stop_token_ids"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        SamplingConfig(**options)


def test_masks_in_a_prompt_need_a_fixed_canvas():
    prompt = np.array([[4, MASK, 5]])
    config = dataclasses.replace(GROW, compat="official-2025")
    with pytest.raises(UserError, match="canvas=grow"):
        sample(TableModel(), prompt, config)
