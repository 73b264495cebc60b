"""The course of a run on a device that writes what it is told: what comes to it, and when."""

import dataclasses

import numpy as np
import pytest

from jaxllada.common import sizing
from jaxllada.common.answer_rows import lay_out
from jaxllada.common.canvas import Snapshot
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.driver import NO_LIMIT, run
from jaxllada.common.sizing import Sizes
from tests.plain_loop import TABLE_CONFIG

MASK, EOS = TABLE_CONFIG.mask_token_id, TABLE_CONFIG.eos_token_id
PROMPTS = np.array([[1, 2], [1, 3], [1, 4], [1, 5]], np.int32)
CONFIG = SamplingConfig(steps=12, gen_length=12, block_length=4, stop_at_eos=True)
GROW = dataclasses.replace(CONFIG, steps=3, canvas="grow")


class Scribe:
    """Fills a block with the tokens of `answers` in its last model call of `calls`."""

    def __init__(self, answers, calls=4, ends=None):
        self.answers, self.calls = np.asarray(answers), calls
        self.ends = iter(ends or ())
        self.placed, self.asked = [], []

    def place(self, canvas, placed):
        self.placed.append((canvas.rows.tolist(), canvas.gen_length, canvas.block, canvas.step))
        assert canvas.tokens.shape[1] == canvas.prompt_length + canvas.gen_length
        assert canvas.policy.block_length == 4
        return {
            "canvas": canvas, "tokens": canvas.tokens.copy(), "order": canvas.order.copy(),
            "block": canvas.block, "step": canvas.step,
        }  # fmt: skip

    def advance(self, placed, end_block, end_step):
        self.asked.append((end_block, end_step))
        tokens, order, canvas = placed["tokens"], placed["order"], placed["canvas"]
        while placed["block"] < end_block and placed["step"] < end_step:
            placed["step"] += 1
            if placed["step"] % self.calls == 0:
                first = placed["block"] * 4
                part = slice(canvas.prompt_length + first, canvas.prompt_length + first + 4)
                blank = tokens[:, part] == MASK
                tokens[:, part][blank] = self.answers[canvas.rows, first : first + 4][blank]
                order[:, part][blank] = placed["step"] - 1
                placed["block"] += 1
        return placed

    def fetch(self, placed):
        confidence = np.where(placed["order"] >= 0, 0.5, 0).astype(np.float32)
        return Snapshot(
            placed["tokens"], placed["order"], confidence, placed["block"], placed["step"]
        )

    def foresee(self, placed):
        """Ends from the named column of the answers on: for each look a number, or one a row."""
        where = np.arange(placed["tokens"].shape[1]) - 2 >= np.reshape(next(self.ends), (-1, 1))
        is_end = np.broadcast_to(where, placed["tokens"].shape)
        return is_end, np.where(is_end, 0.9, 0.1).astype(np.float32)


def answers_with_ends(*places):
    """Rows of 7 with an end token at one place each; None: nowhere."""
    found = np.full((len(places), 12), 7)
    for row, place in enumerate(places):
        if place is not None:
            found[row, place] = EOS
    return found


def course(device, config=CONFIG, rows=4, sizes=None, **options):
    answers = lay_out(TABLE_CONFIG, PROMPTS[:rows], config, None, sizes)
    return list(run(device, answers, **options))


def test_where_nothing_is_decided_the_whole_run_is_one_piece():
    for config, rows in ((dataclasses.replace(CONFIG, stop_at_eos=False), 4), (CONFIG, 1)):
        device = Scribe(answers_with_ends(*[None] * 4))
        (last,) = course(device, config, rows)
        assert device.asked == [(3, NO_LIMIT)]
        assert [rows for rows, *_ in device.placed] == [list(range(rows))]
        assert (last.nfe, last.columns, last.total_calls, last.blocks_left) == (12, 12, 12, 0)
        assert (last.trace.tokens == 7).all()


def test_pieces_end_after_so_many_calls_and_blocks():
    device = Scribe(answers_with_ends(*[None] * 4))
    config = dataclasses.replace(CONFIG, stop_at_eos=False)
    found = course(device, config, steps_per_piece=5)
    assert device.asked == [(3, 5), (3, 10), (3, 15)]
    assert [(p.nfe, p.blocks_left) for p in found] == [(5, 2), (10, 1), (12, 0)]
    device = Scribe(answers_with_ends(None, None, None, None))
    assert [p.nfe for p in course(device, steps_per_piece=3)] == [3, 4, 7, 8, 11, 12]
    assert device.asked[:3] == [(1, 3), (1, 6), (2, 7)]


def test_rows_leave_after_the_block_of_their_end_and_the_rest_is_padding():
    device = Scribe(answers_with_ends(5, None, 3, 5))
    found = course(device)
    assert device.placed == [
        ([0, 1, 2, 3], 12, 0, 0),
        ([0, 1, 3], 12, 1, 4),
        ([1], 12, 2, 8),
    ]
    assert [p.blocks_left for p in found] == [2, 1, 0]
    tokens, order = found[-1].trace.tokens, found[-1].trace.order
    for row, end in enumerate((8, 12, 4, 8)):
        assert (tokens[row, end:] == EOS).all()
        assert (order[row, end:] == end - 1).all()
    assert (found[-1].trace.confidence[2] > 0).tolist() == [True] * 4 + [False] * 8


def test_a_row_alone_stops_on_the_device_unless_the_host_has_to_look():
    for options, changes in (
        ({"should_stop": lambda tokens: False}, {"stop_at_eos": False}),
        ({}, {"stop_token_ids": (9,)}),
        ({}, {"stop_token_ids": (9,), "stop_at_eos": False}),
    ):
        device = Scribe(answers_with_ends(None))
        course(device, dataclasses.replace(CONFIG, **changes), 1, **options)
        assert [block for block, _ in device.asked] == [1, 2, 3]


def test_two_rows_or_gaps_in_a_prompt_are_looked_at_after_every_block():
    device = Scribe(answers_with_ends(None, None))
    course(device, CONFIG, 2)
    assert [block for block, _ in device.asked] == [1, 2, 3]
    # Blocks from the first gap on; the end is in the first block behind the prompt.
    device = Scribe(answers_with_ends(5))
    config = dataclasses.replace(CONFIG, infill=True, gen_length=8, steps=4)
    answers = lay_out(TABLE_CONFIG, np.array([[1, 2, MASK, 3]]), config)
    *_, last = run(device, answers)
    assert [block for block, _ in device.asked] == [1, 2]
    assert (last.nfe, last.trace.tokens.tolist()) == (8, [[1, 2, 7, 3, 7, EOS, 7, 7, *[EOS] * 4]])


def test_own_rules_are_asked_for_what_there_is_of_a_row():
    seen = []

    def after_two_blocks(tokens):
        seen.append(tokens)
        return len(tokens) == 8

    device = Scribe(np.arange(48).reshape(4, 12) % 29)
    config = dataclasses.replace(CONFIG, stop_at_eos=False)
    found = course(device, config, 2, should_stop=after_two_blocks)
    expected = [(np.arange(r * 12, r * 12 + n) % 29).tolist() for n in (4, 8) for r in (0, 1)]
    assert seen == expected
    assert all(type(token) is int for token in seen[0])
    assert (found[-1].nfe, found[-1].trace.tokens[0, 8:].tolist()) == (8, [EOS] * 4)


def test_canvases_grow_block_by_block_up_to_the_most():
    device = Scribe(answers_with_ends(None, 6, None, 1), calls=3)
    found = course(device, GROW)
    assert device.placed == [
        ([0, 1, 2, 3], 4, 0, 0),
        ([0, 1, 2], 8, 1, 3),
        ([0, 2], 12, 2, 6),
    ]
    assert [p.columns for p in found] == [8, 12, 12]
    assert (found[-1].nfe, found[-1].blocks_left) == (9, 0)
    assert (found[-1].trace.tokens[3] == [7, EOS, 7, 7, *[EOS] * 8]).all()
    (last,) = course(Scribe(answers_with_ends(1, 2, 0, 3), calls=3), GROW)
    assert (last.nfe, last.columns, last.trace.tokens.shape) == (3, 12, (4, 12))


@pytest.mark.parametrize(
    ("ends", "lengths", "nfe"),
    [
        # Nobody expects an end: up to the most, and a look between blocks that changes nothing.
        ([99, 99, 99, 99, 99], [4, 8, 12], 14),
        # In sight at once; behind the last block nobody looks.
        ([0], [4], 4),
        # In sight on two blocks; then one of four masks is an end, which is as it should be.
        ([6, 6, 7], [4, 8], 9),
        # All that is left are ends: the answer is over.
        ([99, 99, 99, 4], [4, 8, 12], 7),
    ],
)
def test_adaptive_canvases_are_looked_at_before_the_first_block_and_after_each(ends, lengths, nfe):
    canvas = "adaptive:start=4,window=1,confidence=0.5,low=0.2,high=0.6"
    device = Scribe(answers_with_ends(None), calls=3, ends=ends)
    config = dataclasses.replace(GROW, canvas=canvas)
    found = course(device, config, 1)
    assert list(dict.fromkeys(length for _, length, *_ in device.placed)) == lengths
    assert found[-1].nfe == nfe


def test_rows_have_lengths_of_their_own():
    """The second row expects no end at first, and one behind its second block then."""
    canvas = "adaptive:start=4,window=1,confidence=0.5,low=0.2,high=0.6"
    device = Scribe(answers_with_ends(None, None), calls=3, ends=[(0, 99), (0, 6), 7])
    found = course(device, dataclasses.replace(GROW, canvas=canvas), 2, steps_per_piece=2)
    *before, look, go_on = device.placed
    assert before == [([0, 1], 4, 0, 0), ([0, 1], 8, 0, 0)]
    assert look == go_on == ([1], 8, 1, 3)
    assert [(p.nfe, p.blocks_left) for p in found] == [(4, 2), (6, 1), (8, 1), (9, 0)]
    assert (found[-1].trace.tokens == [[7] * 4 + [EOS] * 8, [7] * 8 + [EOS] * 4]).all()


def test_smaller_batches_are_for_the_calls_that_may_be_left(monkeypatch):
    """Two of four rows leave after the first block: 8 calls are left, 3 where canvases grow."""
    asked = []

    def batch(self, needed, present, calls):
        asked.append((needed, present, calls))
        return present

    monkeypatch.setattr(sizing.Sizes, "batch", batch)
    for config, calls in ((CONFIG, 8), (GROW, 6)):
        asked.clear()
        device = Scribe(answers_with_ends(1, 2, None, None), calls=config.steps_per_block)
        course(device, config, sizes=Sizes())
        assert asked[0] == (2, 4, calls)
        assert device.placed[1][0] == [2, 3, 3, 3], "the last row fills up what is not used"
