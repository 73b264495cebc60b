"""Blocks on the grid of their rows: how prompts are laid out, and what cannot go with it."""

import dataclasses

import numpy as np
import pytest

from jaxllada.apps.sampling_keys import SamplingKeys
from jaxllada.common.alignment import aligned
from jaxllada.common.answer_rows import lay_out
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.errors import UserError
from jaxllada.common.smoothing import call_bounds, call_weights
from tests.plain_loop import TABLE_CONFIG

MASK, EOS = TABLE_CONFIG.mask_token_id, TABLE_CONFIG.eos_token_id
CONFIG = SamplingConfig(gen_length=8, block_length=4, steps=4, start_block_align=True)


def ragged(lengths):
    """Rows that count from 1, padded on the left, and what is seen of them."""
    width = max(lengths)
    seen = np.arange(width) >= width - np.array(lengths)[:, None]
    return np.where(seen, seen.cumsum(axis=1), 0).astype(np.int32), seen


@pytest.mark.parametrize("lengths", [(5,), (8, 4), (1, 2, 3, 9), (0, 3), (6, 6)])
def test_every_row_has_its_first_block_at_the_last_multiple_of_its_own_length(lengths):
    found = aligned(*ragged(lengths), 4, MASK, EOS)
    begin = found.prompt.shape[1] - 4
    assert begin == max(n // 4 * 4 for n in lengths)
    for row, n in enumerate(lengths):
        own = found.prompt[row, found.visible[row]]
        assert own.tolist() == [*range(1, n + 1), *[MASK] * (4 - n % 4)]
        assert found.tails[row] == n % 4
        assert found.visible[row].argmax() == begin - n // 4 * 4
        assert (found.prompt[row, ~found.visible[row]] == EOS).all()


def test_a_hole_in_a_prompt_keeps_its_place():
    prompt, seen = ragged((6, 3))
    seen[0, 2] = False
    found = aligned(prompt, seen, 4, MASK, EOS)
    assert found.prompt[0].tolist() == [1, 2, 3, 4, 5, 6, MASK, MASK]
    assert found.visible[0].tolist() == [True, True, False, *[True] * 5]


@pytest.mark.parametrize("lengths", [(5, 3), (8, 4), (2, 1)])
def test_canvases_hold_the_prompt_and_the_record_has_the_usual_form(lengths):
    prompt, seen = ragged(lengths)
    answers = lay_out(TABLE_CONFIG, prompt, CONFIG, seen)
    canvas = answers.canvas(np.arange(len(prompt)), len(prompt), 0, 0)
    for row, n in enumerate(lengths):
        shown = canvas.tokens[row, canvas.visible[row]]
        assert shown.tolist() == [*range(1, n + 1), *[MASK] * 8]
        places = canvas.positions[row, canvas.visible[row]]
        assert places.tolist() == list(range(n + 8))
        assert (places[canvas.prompt_length - canvas.visible[row].argmax()]) % 4 == 0
        assert canvas.known[row, canvas.prompt_length :].sum() == n % 4
    trace = answers.trace()
    np.testing.assert_array_equal(trace.prompt, prompt)
    np.testing.assert_array_equal(trace.tokens, np.full((len(prompt), 8), MASK))
    assert answers.columns == answers.full_columns == 8


def test_an_answer_ends_with_what_came_behind_the_prompt():
    prompt, seen = ragged((5, 3))
    prompt[0, -1] = EOS
    answers = lay_out(TABLE_CONFIG, prompt, dataclasses.replace(CONFIG, stop_at_eos=True), seen)
    assert answers.finished_part(0, 1).tolist() == [MASK] * 3
    assert answers.finished_part(1, 3).tolist() == [MASK] * 8
    assert not answers.canvas(np.arange(2), 2, 0, 0).policy.stop_at_eos, "the host looks"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"infill": True}, "infill=true, which counts"),
        ({"compat": "official-2025", "smoothing": "none"}, "compat=official-2025"),
        ({"cache": "dllm"}, "cache=dllm, which keeps"),
        ({"end_think_token_ids": (3,), "end_think_logit_boost": 1.0}, "end_think_token_ids"),
    ],
)
def test_what_counts_from_the_prompt_cannot_go_with_a_grid(options, message):
    with pytest.raises(UserError, match=f"start_block_align=true and {message}"):
        dataclasses.replace(CONFIG, **options)


AHEAD = "soft:reach=canvas"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothing": "soft:-1"}, "smoothing=soft:weight=-1.0 must be"),
        ({"smoothing": "soft:start=nan"}, "start=nan must be"),
        ({"smoothing": "soft:reach=far"}, "reach=far is unknown"),
        ({"smoothing": "soft", "compat": "official-2025"}, "smoothing=soft.*compat=official-2025"),
        ({"smoothing": AHEAD, "cache": "dual"}, "reach=canvas.*cache=dual"),
        ({"smoothing": AHEAD, "attention": "block_causal"}, "attention=block_causal"),
        ({"smoothing": AHEAD, "selection": "credit:0.9"}, "selection=credit:0.9"),
        ({"smoothing": AHEAD, "end_think_token_ids": (3,), "end_think_logit_boost": 1.0},
         "end_think_token_ids"),
        ({"selection": "threshold:0.9,decay=-1"}, "decay=-1.0 must be"),
        ({"selection": "threshold:1,decay=0.1"}, "threshold=1.0 leaves decay=0.1"),
    ],
)  # fmt: skip
def test_smoothing_that_cannot_be_is_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        SamplingConfig(**options)


def test_shares_grow_and_thresholds_fall_by_the_call():
    rule = SamplingConfig(smoothing="soft:0.19,0.15,0.02").smoothing_rule
    np.testing.assert_allclose(call_weights(rule, 4), [0.15, 0.17, 0.19, 0.19], rtol=1e-7)
    rule = SamplingConfig(selection="threshold:0.8,decay=0.15").selection_rule
    np.testing.assert_allclose(call_bounds(rule, 3), [1, 0.85, 0.8], rtol=1e-7)
    plain = SamplingConfig(selection="threshold:0.8")
    assert not len(call_bounds(plain.selection_rule, 3))
    assert not len(call_weights(plain.smoothing_rule, 3))


def test_steps_of_aligned_blocks_are_those_of_one_block():
    config = SamplingKeys(gen_length=64, start_block_align=True).sampling(1024)
    assert (config.block_length, config.steps, config.steps_per_block) == (32, 32, 32)
