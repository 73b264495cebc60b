"""Copies laid beside shared prompts: every view finds its own tokens, each canvas is laid once."""

import itertools
import math

import numpy as np
import pytest

from jaxllada.common.shared_prompts import SPAN, copies_per_row, ground_key, pack_shared
from jaxllada.common.views import Shapes, Text, View
from tests.plain_loop import TABLE_CONFIG

MASK, PAD = TABLE_CONFIG.mask_token_id, TABLE_CONFIG.pad_token_id
PROMPTS = ([3, 4, 5], [], [6, 7, 8, 9], [3, 4, 6], [2])


def views_of(seed, longest=5, tail=()):
    """Masked copies of answers of several lengths to several prompts, some of them twice."""
    rng = np.random.default_rng(seed)
    found = []
    for prompt, length in itertools.product(PROMPTS, (2, longest)):
        answer = rng.integers(0, 29, length)
        text = Text(*(np.array(part, np.int32) for part in (prompt, answer, tail)))
        for _ in range(6):
            found.append(View(text, rng.random(length) < 0.6))
    return [found[i] for i in rng.permutation(len(found))]


def shown(view):
    """What stands behind the prompt of a masked copy."""
    return [*np.where(view.is_hidden, MASK, view.text.answer), *view.text.tail]


def ground_of(view, hides_prompt):
    """The prompt and an answer that is all masks, as one tuple of tokens."""
    prompt = [MASK] * len(view.text.prompt) if hides_prompt else view.text.prompt.tolist()
    return (len(prompt), *prompt, *[MASK] * len(view.text.answer), *view.text.tail.tolist())


@pytest.mark.parametrize("is_guided", [False, True])
@pytest.mark.parametrize("shapes", [Shapes(), Shapes(length=16, answer=8, is_padded=True)])
@pytest.mark.parametrize("tail", [(), (30,)])
def test_every_view_finds_its_copy_and_the_prompt_of_it(shapes, is_guided, tail):
    views = views_of(1, tail=tail)
    batch, count = pack_shared(views, TABLE_CONFIG, shapes, is_guided)
    start, size = 4, batch.targets.shape[1]
    assert batch.start == start
    assert size == (8 if shapes.is_padded else 5 + len(tail))
    assert batch.hidden.shape[1] == (16 if shapes.is_padded else start + size)
    per_row = batch.copies.shape[1] // size
    copies = batch.copies.reshape(-1, size)
    for r, view in enumerate(views):
        for place, hides in ((batch.given[r], False), (batch.without[r], is_guided)):
            own = shown(view)
            np.testing.assert_array_equal(copies[place], own + [PAD] * (size - len(own)))
            ground = batch.ground[place // per_row]
            first, last = batch.first[ground], batch.last[ground]
            assert first == start - len(view.text.prompt)
            found = batch.hidden[ground, first:last].tolist()
            assert (len(view.text.prompt), *found) == ground_of(view, hides)
            assert (batch.hidden[ground, :first] == PAD).all()
            assert (batch.hidden[ground, last:] == PAD).all()
        length = len(view.is_hidden)
        np.testing.assert_array_equal(batch.targets[r, :length], view.text.answer)
        np.testing.assert_array_equal(batch.asked[r, :length], view.is_hidden)
        assert not batch.asked[r, length:].any()
    assert not batch.asked[len(views) :].any()
    ways = (False, True) if is_guided else (False,)
    assert count == len({(ground_of(v, hides), *shown(v)) for v in views for hides in ways})


@pytest.mark.parametrize("is_guided", [False, True])
def test_prompts_are_laid_once_and_copies_fill_their_rows(monkeypatch, is_guided):
    monkeypatch.setattr("jaxllada.common.shared_prompts.SPAN", 16)
    views = views_of(2)
    batch, _ = pack_shared(views, TABLE_CONFIG, Shapes(), is_guided)
    copies, ways = {}, (False, True) if is_guided else (False,)
    for view, hides in itertools.product(views, ways):
        copies.setdefault(ground_of(view, hides), set()).add(tuple(shown(view)))
    assert len(batch.hidden) == len(copies)
    assert batch.copies.shape[1] == 3 * 5  # copies of five tokens in a span of sixteen
    assert len(batch.copies) == sum(math.ceil(len(own) / 3) for own in copies.values())
    # A hidden prompt of one length is the same, whatever it was.
    assert ground_key(views[0], True) == ground_key(
        views[0]._replace(text=views[0].text._replace(prompt=views[0].text.prompt + 1)), True
    )


def test_few_sizes_come_to_a_compiler():
    """Copies in a row, rows and views are powers of two, prompts of four; none is lost."""
    seen = set()
    for number in range(1, 40):
        views = views_of(3)[:number]
        exact, _ = pack_shared(views, TABLE_CONFIG, Shapes(answer=8))
        batch, _ = pack_shared(views, TABLE_CONFIG, Shapes(answer=8, is_padded=True))
        rows, per_row = len(batch.copies), batch.copies.shape[1] // 8
        least = exact.copies.shape[1] // 8
        assert per_row == 2 ** math.ceil(math.log2(least))
        assert rows == 2 ** math.ceil(math.log2(len(exact.copies)))
        assert len(batch.hidden) == min(rows, 4 ** math.ceil(math.log(len(exact.hidden), 4)))
        assert len(batch.given) == max(rows * per_row, 2 ** math.ceil(math.log2(number)))
        np.testing.assert_array_equal(exact.without, exact.given)
        seen.add((rows, per_row, len(batch.hidden), len(batch.given)))
    assert len(seen) < 12


@pytest.mark.parametrize(("size", "copies"), [(1, SPAN), (100, 5), (SPAN, 1), (SPAN + 1, 1)])
def test_a_span_holds_whole_copies_and_at_least_one(size, copies):
    assert SPAN == 512
    assert copies_per_row(size) == copies
