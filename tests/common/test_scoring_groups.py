"""How scoring shares out work and time, when it calls a question decided, and what it refuses."""

import dataclasses
import itertools
import math

import pytest

from jaxllada.common import drawing, scoring
from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.errors import UserError
from jaxllada.common.scores import Question
from jaxllada.common.scoring import score_one_by_one
from tests.common.table_reader import Tables, make_question, score

MODEL = Tables(seed=3)


@pytest.fixture
def groups(monkeypatch):
    """How many questions were scored together, group by group."""
    found, whole = [], scoring._score_group

    def recorded(questions, *rest):
        found.append(len(questions))
        return whole(questions, *rest)

    monkeypatch.setattr(scoring, "_score_group", recorded)
    return found


@pytest.mark.parametrize(
    ("options", "views"),
    [
        ({"mc_num": 8, "batch_size": 4}, 2 * 8),
        ({"method": "exact"}, 2**3 - 1 + 2**4 - 1),
        ({"method": "confidence"}, 2),
        ({"mc_num": 96, "batch_size": 4, "stop_level": 0.8}, 2 * 4 * 3),
    ],
)
def test_groups_hold_as_many_views_as_memory_should_and_change_nothing(
    monkeypatch, groups, options, views
):
    questions = [make_question(i, [3, 4]) for i in range(5)]
    config = LikelihoodConfig(**options)
    whole = score(MODEL, questions, config)
    assert groups == [5]
    for most, sizes in ((2 * views, [2, 2, 1]), (2 * views - 1, [1] * 5), (1, [1] * 5)):
        groups.clear()
        monkeypatch.setattr(scoring, "MOST_VIEWS", most)
        parts = score(MODEL, questions, config)
        assert groups == sizes
        for one, other in zip(whole, parts, strict=True):
            assert (one.best, one.is_decided) == (other.best, other.is_decided)
            values = [[s.value for s in found.options] for found in (one, other)]
            assert values[1] == pytest.approx(values[0], rel=1e-12)


def test_no_question_is_no_work(groups):
    assert score(MODEL, [], LikelihoodConfig()) == []
    assert groups == []


@pytest.fixture
def clock(monkeypatch):
    """Three seconds pass between any two looks at the clock."""
    times = itertools.count(100, 3)
    monkeypatch.setattr(scoring.time, "perf_counter", lambda: float(next(times)))


@pytest.mark.usefixtures("clock")
def test_the_time_of_a_group_is_shared_by_what_was_read(monkeypatch):
    questions = [make_question(i, [3, 1]) for i in range(4)]
    found = score(MODEL, questions, LikelihoodConfig(mc_num=8, batch_size=4))
    options = [option for result in found for option in result.options]
    assert sum(option.seconds for option in options) == pytest.approx(3)
    rates = {option.seconds / option.nfe for option in options}
    assert max(rates) == pytest.approx(min(rates))
    assert len({option.nfe for option in options}) > 1
    alone = score_one_by_one(questions[:1], lambda prompt, answer: -1.0)[0]
    assert [option.seconds for option in alone.options] == [3, 3]


def test_a_question_is_decided_where_both_rankings_are():
    """Divisors that make both options equal leave the second ranking open."""
    config = LikelihoodConfig(mc_num=32, batch_size=4, stop_level=0.9)
    question = make_question(4, [1, 1])
    plain = score(MODEL, [question], config)[0]
    assert plain.is_decided
    assert plain.best_divided == plain.best
    nats = tuple(-option.value for option in plain.options)
    twins = score(MODEL, [dataclasses.replace(question, divisors=nats)], config)[0]
    assert (twins.is_decided, twins.best, twins.best_divided) == (False, plain.best, 0)
    turned = dataclasses.replace(question, divisors=tuple(n * n for n in nats))
    found = score(MODEL, [turned], config)[0]
    assert (found.is_decided, found.best, found.best_divided) == (True, plain.best, 1 - plain.best)
    assert score(MODEL, [turned], dataclasses.replace(config, stop_level=0.0))[0].is_decided is None


def test_the_chance_of_an_error_is_shared_by_all_looks(monkeypatch):
    """Eight rounds are looked at from the third on."""
    found, race = [], scoring.Race

    def recorded(*arguments):
        found.append(arguments)
        return race(*arguments)

    monkeypatch.setattr(scoring, "Race", recorded)
    question = dataclasses.replace(make_question(1, [3, 4]), divisors=(3.0, 4.0))
    score(MODEL, [question], LikelihoodConfig(mc_num=32, batch_size=4, stop_level=0.75))
    assert found == [(2, (1.0, 1.0), 0.75, 6), (2, (3.0, 4.0), 0.75, 6)]


def test_a_corrected_value_has_the_error_of_its_correction_too(monkeypatch):
    monkeypatch.setattr(drawing, "LEAST_GAIN", 0)
    config = LikelihoodConfig(mc_num=16, batch_size=8)
    fast, fixed = (
        score(
            MODEL, [make_question(3, [5])], dataclasses.replace(config, reuse=reuse),
            reusing=Tables(seed=4),
        )[0].options[0]
        for reuse in ("prompt", "corrected")
    )  # fmt: skip
    assert fast.reuse_stderr > 0
    assert fixed.stderr == pytest.approx(math.hypot(fast.stderr, fast.reuse_stderr))
    assert fixed.value == pytest.approx(fast.value - fast.reuse_error)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Question([1], ([2], [3]), (1.0,)), r"divisors=\(1.0,\) must be 2 numbers above 0"),
        (Question([1], ([2], [3]), (1.0, -1.0)), r"divisors=\(1.0, -1.0\) must be 2 numbers"),
        (Question([1], ([2],) * 257), "question 0 has 257 options; 1 to 256 can be scored"),
    ],
)
def test_odd_numbers_of_options_and_divisors_are_refused(question, message):
    with pytest.raises(UserError, match=message):
        score(MODEL, [question], LikelihoodConfig(mc_num=1, batch_size=1))
    most = Question([1], ([2],) * 256)
    found = score(MODEL, [most], LikelihoodConfig(mc_num=1, batch_size=1))[0]
    assert len(found.options) == 256
