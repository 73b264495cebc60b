"""Rules of the sampler beyond the published loop: buckets, end tokens, prompts, wrong input."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.errors import UserError
from jaxllada.sampling import generate
from jaxllada.sampling.generate import sample, sample_stepwise, sample_trace
from jaxllada.sampling.loop import advance
from tests.jax.sampling_oracle import TableModel, plain_loop

MODEL = TableModel(seed=3)
EOS, MASK, EOT = MODEL.config.eos_token_id, MODEL.config.mask_token_id, 29
CONFIG = SamplingConfig(steps=6, gen_length=12, block_length=4)
PROMPT = np.array([[4, 8, 15, 16, 23]], np.int32)


def logits_of(model):
    return lambda canvas, visible: np.array(model(canvas, visible))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("multiple", [1, 17, 64, 128])
def test_the_length_of_the_canvas_does_not_change_tokens(monkeypatch, multiple, temperature):
    config = dataclasses.replace(CONFIG, temperature=temperature)
    expected = sample(MODEL, PROMPT, config, key=jax.random.key(0))
    monkeypatch.setattr(generate, "CANVAS_MULTIPLE", multiple)
    tokens = sample(MODEL, PROMPT, config, key=jax.random.key(0))
    np.testing.assert_array_equal(tokens, expected)


def test_prompts_steps_lengths_and_temperatures_share_one_compilation():
    config = SamplingConfig(steps=8, gen_length=8, block_length=8, temperature=0.5)
    sample(MODEL, PROMPT, config, key=jax.random.key(0))
    compiled = advance._cache_size()
    for length, changes in enumerate(
        [{"steps": 3}, {"temperature": 1.5}, {"gen_length": 32, "steps": 8}, {"steps": 100}], 1
    ):
        prompt = np.full((1, 6 * length), 7, np.int32)
        new = dataclasses.replace(config, **changes)
        sample(MODEL, prompt, new, key=jax.random.key(length))
        list(sample_stepwise(MODEL, prompt, new, key=jax.random.key(length)))
    assert advance._cache_size() == compiled
    sample(MODEL, np.full((1, 60), 7, np.int32), config, key=jax.random.key(0))
    assert advance._cache_size() == compiled + 1  # the next canvas length


@pytest.mark.parametrize("steps_per_piece", [1, 2, 5, 100])
def test_running_in_pieces_gives_the_same_tokens(steps_per_piece):
    config = dataclasses.replace(CONFIG, temperature=1.0)
    whole = sample_trace(MODEL, PROMPT, config, key=jax.random.key(1))
    pieces = list(
        sample_stepwise(
            MODEL, PROMPT, config, key=jax.random.key(1), steps_per_piece=steps_per_piece
        )
    )
    assert len(pieces) == -(-6 // steps_per_piece)
    for piece in pieces:
        np.testing.assert_array_equal(piece.tokens, whole.frame(piece.num_steps))
    np.testing.assert_array_equal(pieces[-1].order, whole.order)
    np.testing.assert_array_equal(pieces[-1].confidence, whole.confidence)


def test_rows_of_a_batch_draw_different_noise():
    config = dataclasses.replace(CONFIG, temperature=2.0)
    tokens = np.array(sample(MODEL, np.repeat(PROMPT, 4, axis=0), config, key=jax.random.key(2)))
    assert len({tuple(row) for row in tokens}) == 4


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("late", [EOS, EOT])
def test_end_tokens_are_committed_last_in_their_block(late, temperature):
    """One position of each block prefers an end token, with the highest confidence of all."""
    model = TableModel(seed=3)
    table = np.array(model.table[...])
    ends = [len(PROMPT[0]) + slot for slot in (1, 6, 8)]
    table[ends, late] = 40
    model.table[...] = table
    config = SamplingConfig(
        steps=12, gen_length=12, block_length=4, temperature=temperature,
        confidence_eos_eot_inf=True, eot_token_id=EOT,
    )  # fmt: skip
    order = sample_trace(model, PROMPT, config, key=jax.random.key(0)).order[0]
    np.testing.assert_array_equal(order[[1, 6, 8]], [3, 7, 11])
    plain = dataclasses.replace(config, confidence_eos_eot_inf=False)
    order = sample_trace(model, PROMPT, plain, key=jax.random.key(0)).order[0]
    np.testing.assert_array_equal(order[[1, 6, 8]], [0, 4, 8])


def test_end_tokens_everywhere_are_committed_in_order_with_confidence_zero_officially():
    model = TableModel(seed=3, favourite=EOS)
    config = SamplingConfig(
        steps=4, gen_length=4, block_length=4,
        confidence_eos_eot_inf=True, eot_token_id=EOT, compat="official-2025",
    )  # fmt: skip
    trace = sample_trace(model, PROMPT, config)
    np.testing.assert_array_equal(trace.tokens, [[EOS] * 4])
    np.testing.assert_array_equal(trace.order, [[0, 1, 2, 3]])
    np.testing.assert_array_equal(trace.confidence, np.zeros((1, 4)))


def test_no_end_token_is_predicted_when_it_is_forbidden():
    model = TableModel(seed=3, favourite=EOS)
    config = dataclasses.replace(CONFIG, logits_eos_inf=True)
    assert EOS in sample_trace(model, PROMPT, CONFIG).tokens
    assert EOS not in sample_trace(model, PROMPT, config).tokens


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_masks_are_predicted_by_the_release_only(temperature):
    model = TableModel(seed=3, favourite=MASK)
    config = dataclasses.replace(CONFIG, temperature=temperature)
    key = jax.random.key(0)
    assert MASK not in sample_trace(model, PROMPT, config, key=key).tokens
    official = dataclasses.replace(config, compat="official-2025")
    np.testing.assert_array_equal(sample_trace(model, PROMPT, official, key=key).tokens, MASK)


def ending_model(slot):
    """Predicts the end token at one place of the answer, for a prompt of five tokens."""
    model = TableModel(seed=3)
    table = np.array(model.table[...])
    table[:, EOS] = -64
    table[5 + slot, EOS] = 64
    model.table[...] = table
    return model


@pytest.mark.parametrize("slot", [0, 3, 5, 11])
def test_stopping_fills_the_rest_with_end_tokens_and_saves_the_calls(slot):
    model = ending_model(slot)
    full = sample_trace(model, PROMPT, CONFIG)
    config = dataclasses.replace(CONFIG, stop_at_eos=True)
    trace = sample_trace(model, PROMPT, config)
    finished = (slot // 4 + 1) * 4
    np.testing.assert_array_equal(trace.tokens[:, :finished], full.tokens[:, :finished])
    np.testing.assert_array_equal(trace.tokens[:, finished:], EOS)
    assert trace.num_steps == finished // 4 * 2
    assert len(list(sample_stepwise(model, PROMPT, config))) == trace.num_steps
    assert (trace.confidence[:, finished:] == 0).all()


def test_a_row_that_stops_does_not_disturb_the_others():
    model = ending_model(1)
    config = dataclasses.replace(CONFIG, stop_at_eos=True)
    # The second prompt is longer, so its answer never reaches the place of the end token.
    prompts = np.array([[0, 0, *PROMPT[0]], [1, 2, 3, 4, 5, 6, 7]], np.int32)
    visible = np.array([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    both = sample_trace(model, prompts, config, visible)
    first = sample_trace(model, PROMPT, config)
    second = sample_trace(model, prompts[1:], config)
    np.testing.assert_array_equal(both.tokens[0], first.tokens[0])
    np.testing.assert_array_equal(both.tokens[1], second.tokens[0])
    assert EOS not in second.tokens
    assert (both.num_steps, first.num_steps) == (6, 2)


def test_masks_in_a_prompt_take_part_as_in_the_release():
    prompt = np.array([[4, MASK, 15, MASK, 23], [1, 2, 3, 4, 5]], np.int32)
    config = dataclasses.replace(CONFIG, compat="official-2025")
    expected = list(plain_loop(logits_of(MODEL), prompt, config, MODEL.config))
    np.testing.assert_array_equal(sample(MODEL, prompt, config), expected[-1])
    assert MASK in expected[-1][0]  # they use up the budget of the blocks


def test_masks_under_padding_are_not_seen():
    prompt = np.array([[MASK, MASK, *PROMPT[0]]], np.int32)
    tokens = sample(MODEL, prompt, CONFIG, np.array([[0, 0, 1, 1, 1, 1, 1]]))
    np.testing.assert_array_equal(tokens[:, 7:], sample(MODEL, PROMPT, CONFIG)[:, 5:])


def test_holes_in_the_attention_mask_keep_their_places():
    mask = np.array([[1, 0, 1, 1, 1]])
    (*_, expected) = plain_loop(logits_of(MODEL), PROMPT, CONFIG, MODEL.config, mask)
    np.testing.assert_array_equal(sample(MODEL, PROMPT, CONFIG, mask), expected)


@pytest.mark.parametrize("rows", [0, 2])
def test_keys_may_be_of_another_kind(rows):
    config = dataclasses.replace(CONFIG, temperature=2.0)
    prompt = np.repeat(PROMPT, 2, axis=0)
    answers = set()
    for seed in (0, 1):
        key = jax.random.key(seed, impl="rbg")
        key = jax.random.split(key, rows) if rows else key
        answers |= {tuple(row) for row in np.array(sample(MODEL, prompt, config, key=key))}
    assert len(answers) == 4


def test_keys_may_be_raw_bits():
    config = dataclasses.replace(CONFIG, temperature=1.0)
    key = jax.random.key(4)
    raw = sample(MODEL, PROMPT, config, key=jax.random.key_data(key))
    np.testing.assert_array_equal(raw, sample(MODEL, PROMPT, config, key=key))


@pytest.mark.parametrize(
    ("prompt", "arguments", "message"),
    [
        ([1, 2], {}, r"shape \(2,\); expected \[rows, tokens\]"),
        (np.zeros((0, 3), int), {}, r"shape \(0, 3\)"),
        ([[1.0, 2.0]], {}, "float64; expected integer"),
        ([[1, 32]], {}, "row 0 holds id 32 at position 1, outside the 32 rows"),
        ([[1, 2], [-1, 3]], {}, "row 1 holds id -1 at position 0"),
        ([[1, MASK, 2]], {}, f"holds the mask id {MASK} at position 1"),
        ([[1, 2]], {"attention_mask": [[1]]}, r"attention_mask has shape \(1, 1\)"),
        ([[1, 2]], {"key": jax.random.split(jax.random.key(0), 3)}, r"shape \(3,\)"),
    ],
)
def test_wrong_input_is_told_before_anything_is_compiled(prompt, arguments, message):
    compiled = advance._cache_size()
    with pytest.raises(UserError, match=message):
        sample(MODEL, prompt, CONFIG, **arguments)
    assert advance._cache_size() == compiled


@pytest.mark.parametrize("changes", [{"temperature": 0.5}, {"remasking": "random"}])
def test_random_choices_need_a_key(changes):
    with pytest.raises(UserError, match=r"pass key=jax\.random\.key"):
        sample(MODEL, PROMPT, dataclasses.replace(CONFIG, **changes))
