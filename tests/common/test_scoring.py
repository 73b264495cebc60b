"""Scores of questions on a model of tables: unbiased, decided with care, each canvas read once."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from jaxllada.common import drawing
from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.errors import UserError
from jaxllada.common.likelihood import stratified_counts
from jaxllada.common.scores import Question, student_quantile
from jaxllada.common.scoring import check_exact, score_one_by_one, score_questions
from jaxllada.common.views import Shapes
from tests.common.table_reader import Tables, make_question, make_readers, score
from tests.plain_loop import TABLE_CONFIG

MASK, EOS = TABLE_CONFIG.mask_token_id, TABLE_CONFIG.eos_token_id
MODEL = Tables(seed=3)


def log_p(model, prompt, answer, hidden, tail=()):
    """Summed log-probability of the hidden answer tokens, by one call on one canvas."""
    shown = [MASK if i in hidden else token for i, token in enumerate(answer)]
    nats = model.nats(np.array([*prompt, *shown, *tail]))
    return -sum(nats[len(prompt) + i, answer[i]] for i in hidden)


def set_means(model, prompt, answer, **options):
    """For each mask count the mean of Eq. 6 over every set, written out."""
    length = len(answer)
    return [
        np.mean(
            [
                log_p(model, prompt, answer, chosen, **options) * length / count
                for chosen in itertools.combinations(range(length), count)
            ]
        )
        for count in range(1, length + 1)
    ]


@pytest.mark.parametrize("length", [1, 2, 4, 6])
@pytest.mark.parametrize("padd_eos", [False, True])
def test_the_exact_value_is_eq_6_written_out(length, padd_eos):
    question = make_question(length, [length])
    config = LikelihoodConfig(method="exact", padd_eos=padd_eos)
    found = score(MODEL, [question], config)[0].options[0]
    tail = [EOS] if padd_eos else []
    expected = np.mean(set_means(MODEL, question.prompt, question.options[0], tail=tail))
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert (found.stderr, found.n) == (0, 2**length - 1)


@pytest.mark.parametrize(("length", "batch"), [(2, 1), (3, 3), (4, 2), (6, 6), (6, 3)])
def test_the_estimator_is_unbiased_over_all_that_it_may_draw(length, batch):
    """Every start of the counts and every set of each size, weighted as they are drawn."""
    question = make_question(9, [length])
    means = set_means(MODEL, question.prompt, question.options[0])
    counts = [stratified_counts(start, length, batch) for start in range(1, length + 1)]
    assert np.mean([means[count - 1] for count in np.concatenate(counts)]) == pytest.approx(
        np.mean(means), rel=1e-12
    )


def test_drawn_values_scatter_around_the_exact_one_as_their_standard_errors_say():
    question = make_question(1, [6])
    exact = score(MODEL, [question], LikelihoodConfig(method="exact"))[0].options[0].value
    config = LikelihoodConfig(mc_num=32, batch_size=4)
    found = [score(MODEL, [question], config, seed=seed)[0].options[0] for seed in range(300)]
    values = np.array([s.value for s in found])
    assert abs(values.mean() - exact) < 4 * values.std() / math.sqrt(300)
    errors = np.array([s.stderr for s in found])
    # Root mean squares agree; 300 draws know a standard deviation to about 5 %.
    assert math.sqrt(np.mean(errors**2)) == pytest.approx(values.std(ddof=1), rel=0.2)


def test_common_random_numbers_shrink_the_error_of_differences():
    """Options that differ in one token of eight, at 8 masks each."""
    base = make_question(5, [8])
    other = [*base.options[0]]
    other[3] = (other[3] + 1) % 29
    question = Question(base.prompt, (base.options[0], other))

    def spread(common):
        config = LikelihoodConfig(mc_num=8, batch_size=8, common_random_numbers=common)
        found = [score(MODEL, [question], config, seed=seed)[0].options for seed in range(150)]
        return np.var([a.value - b.value for a, b in found])

    # Measured: 7 times smaller.
    assert spread(True) < spread(False) / 3


def test_early_decisions_are_wrong_no_oftener_than_stated_and_save_masks():
    questions = [make_question(seed, [7, 7, 7]) for seed in range(60)]
    full = [q.best for q in score(MODEL, questions, LikelihoodConfig(method="exact"))]
    config = LikelihoodConfig(mc_num=96, batch_size=4, stop_level=0.8)
    found = score(MODEL, questions, config)
    decided = [(q.best, best) for q, best in zip(found, full, strict=True) if q.is_decided]
    # Measured: 37 decided, none of them wrongly, with 51 masks an option.
    assert len(decided) > 30
    assert sum(a != b for a, b in decided) <= 0.2 * len(decided)
    assert np.mean([s.n for q in found for s in q.options]) < 60
    assert all(s.n <= 96 for q in found for s in q.options)


def test_an_equal_pair_is_never_decided():
    twin = make_question(2, [9])
    question = Question(twin.prompt, (twin.options[0], twin.options[0]))
    config = LikelihoodConfig(mc_num=32, batch_size=4, stop_level=0.5)
    found = score(MODEL, [question], config)[0]
    assert (found.is_decided, found.best) == (False, 0)
    assert [s.n for s in found.options] == [32, 32]


def test_short_options_are_settled_exactly_where_stopping_is_on():
    question = make_question(4, [1, 2, 3])
    found = score(MODEL, [question], LikelihoodConfig(mc_num=32, batch_size=4, stop_level=0.99))[0]
    exact = score(MODEL, [question], LikelihoodConfig(method="exact"))[0]
    assert [s.value for s in found.options] == [s.value for s in exact.options]
    assert found.is_decided
    assert found.best == exact.best


def test_a_lone_option_is_drawn_in_full():
    config = LikelihoodConfig(mc_num=32, batch_size=4, stop_level=0.9)
    found = score(MODEL, [make_question(4, [9])], config)[0]
    assert (found.is_decided, found.options[0].n) == (True, 32)


def test_the_ranking_per_length_is_decided_too():
    question = make_question(6, [8, 12, 8])
    question = dataclasses.replace(question, divisors=(8.0, 12.0, 8.0))
    config = LikelihoodConfig(mc_num=64, batch_size=8)
    found = score(MODEL, [question], config)[0]
    values = [s.value / d for s, d in zip(found.options, question.divisors, strict=True)]
    assert found.best_divided == int(np.argmax(values))
    stopped = score(MODEL, [question], dataclasses.replace(config, stop_level=0.6))[0]
    assert (stopped.best, stopped.best_divided) == (found.best, found.best_divided)


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
@pytest.mark.parametrize(
    "options", [{}, {"method": "confidence", "greedy_check": True}, {"stop_level": 0.8}]
)
def test_values_do_not_depend_on_how_questions_and_rows_are_cut(cfg_scale, options):
    questions = [make_question(i, [3, 7, 5], prompt=i) for i in range(5)]
    config = LikelihoodConfig(mc_num=32, batch_size=8, cfg_scale=cfg_scale, **options)
    whole = score(MODEL, questions, config, first=10)
    padded = Shapes(length=16, answer=8, is_padded=True)
    cut = [
        result
        for i, question in enumerate(questions)
        for result in score(
            MODEL,
            [question],
            dataclasses.replace(config, rows_per_call=3),
            first=10 + i,
            shapes=padded,
        )
    ]
    for a, b in zip(whole, cut, strict=True):
        assert (a.best, a.is_decided) == (b.best, b.is_decided)
        for one, other in zip(a.options, b.options, strict=True):
            assert other.value == pytest.approx(one.value, rel=1e-12)
            assert (other.n, other.nfe, other.is_greedy) == (one.n, one.nfe, one.is_greedy)


def test_every_canvas_is_read_once():
    config = LikelihoodConfig(mc_num=1, batch_size=1, rows_per_call=64)

    def canvases(question, **options):
        changed = dataclasses.replace(config, **options)
        readers = make_readers(MODEL, changed)
        score_questions([question], changed, TABLE_CONFIG, readers)
        return readers[False].num_canvases

    letters = make_question(0, [1, 1, 1, 1])
    assert canvases(letters) == 1
    assert canvases(letters, cfg_scale=1.0) == 2
    assert canvases(dataclasses.replace(letters, prompt=[]), cfg_scale=1.0) == 1
    # Of 128 masks of two tokens there are three.
    assert canvases(make_question(0, [2]), mc_num=128, batch_size=16) == 3


def slow_confidence(prompt, answer):
    """iLLaDA's score and the greedy suffix, transcribed: one call per revealed token."""
    hidden, total = set(range(len(answer))), 0.0
    while hidden:
        shown = [MASK if i in hidden else token for i, token in enumerate(answer)]
        nats = MODEL.nats(np.array([*prompt, *shown]))[len(prompt) :]
        terms = {i: nats[i, answer[i]] for i in sorted(hidden)}
        surest = min(terms, key=terms.__getitem__)
        total -= terms[surest]
        hidden.remove(surest)
    canvas = [MASK] * len(answer)
    while MASK in canvas:
        nats = MODEL.nats(np.array([*prompt, *canvas]))[len(prompt) :]
        best = {i: nats[i].min() for i, token in enumerate(canvas) if token == MASK}
        surest = min(best, key=best.__getitem__)
        canvas[surest] = int(nats[surest].argmin())
    return total, canvas


def test_confidence_and_greedy_check_equal_their_slow_loops():
    config = LikelihoodConfig(method="confidence", greedy_check=True)
    question = make_question(8, [5, 3, 1, 7])
    greedy = slow_confidence(question.prompt, question.options[0])[1]
    question = dataclasses.replace(question, options=(*question.options, greedy))
    found = score(MODEL, [question], config)[0]
    for option, result in zip(question.options, found.options, strict=True):
        total, canvas = slow_confidence(question.prompt, option)
        assert result.value == pytest.approx(total, rel=1e-12)
        assert result.is_greedy == (canvas == list(option))
    assert found.options[-1].is_greedy


@pytest.fixture
def always_reuse(monkeypatch):
    """Prompts are reused however little that saves."""
    monkeypatch.setattr(drawing, "LEAST_GAIN", 0)


@pytest.mark.usefixtures("always_reuse")
def test_reuse_tells_its_error_and_the_corrected_value_is_unbiased():
    question = make_question(3, [5])
    other = Tables(seed=3)
    other.table = other.table + np.linspace(0, 2, 32, dtype=np.float32)
    exact, biased = (
        score(m, [question], LikelihoodConfig(method="exact"))[0].options[0].value
        for m in (MODEL, other)
    )

    def values(reuse):
        config = LikelihoodConfig(mc_num=16, batch_size=8, reuse=reuse)
        found = [
            score(MODEL, [question], config, reusing=other, seed=seed)[0].options[0]
            for seed in range(200)
        ]
        return found, np.array([s.value for s in found])

    fast, drawn = values("prompt")
    assert abs(drawn.mean() - biased) < 4 * drawn.std() / math.sqrt(200)
    errors = [s.reuse_error for s in fast]
    assert abs(np.mean(errors) - (biased - exact)) < 4 * np.std(errors) / math.sqrt(200)
    fixed, drawn = values("corrected")
    assert abs(drawn.mean() - exact) < 4 * drawn.std() / math.sqrt(200) < abs(biased - exact)
    spread = math.sqrt(np.mean([s.stderr**2 for s in fixed]))
    assert drawn.std() < 1.2 * spread


@pytest.mark.parametrize("options", [{}, {"stop_level": 0.8}, {"method": "exact"}])
def test_only_questions_that_it_saves_much_work_for_reuse_their_prompt(options):
    """The other reader has other tables, so that values tell who read what."""
    other = Tables(seed=4)
    config = LikelihoodConfig(mc_num=48, batch_size=8, reuse="prompt", **options)
    questions = [
        make_question(0, [8, 9], prompt=100),
        make_question(1, [8, 9], prompt=1),
        make_question(2, [2, 3], prompt=40),
    ]
    mixed, plain, fast = (
        score(model, questions, dataclasses.replace(config, reuse=reuse), reusing=other)
        for model, reuse in ((MODEL, "prompt"), (MODEL, "none"), (other, "none"))
    )
    for number, expected in enumerate((fast, plain, plain)):
        for a, b in zip(mixed[number].options, expected[number].options, strict=True):
            assert a.value == pytest.approx(b.value, rel=1e-12)
            assert (a.reuse_error is None) == (number > 0)
            assert number == 0 or a == dataclasses.replace(b, seconds=a.seconds)


@pytest.mark.usefixtures("always_reuse")
@pytest.mark.parametrize("method", ["monte_carlo", "exact"])
def test_reuse_without_error_changes_no_value(method):
    config = LikelihoodConfig(mc_num=16, batch_size=8, method=method)
    questions = [make_question(i, [3, 7, 5], prompt=i) for i in range(3)]
    plain, reused = (
        score(MODEL, questions, dataclasses.replace(config, reuse=reuse))
        for reuse in ("none", "prompt")
    )
    for one, other in zip(plain, reused, strict=True):
        for a, b in zip(one.options, other.options, strict=True):
            assert (a.value, a.stderr, a.n) == (b.value, b.stderr, b.n)
            assert b.reuse_error == 0


def test_a_single_mask_of_many_tokens_has_no_standard_error():
    config = LikelihoodConfig(mc_num=1, batch_size=1)
    found = score(MODEL, [make_question(0, [1, 4])], config)[0].options
    assert found[0].stderr == 0
    assert math.isnan(found[1].stderr)


@pytest.mark.parametrize(
    ("p", "freedom", "t"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.99, 3, 4.5407), (0.9995, 10, 4.5869),
     (0.975, 120, 1.9799)],
)  # fmt: skip
def test_quantiles_of_student_are_those_of_the_tables(p, freedom, t):
    assert student_quantile(p, freedom) == pytest.approx(t, abs=1e-4)


def test_an_exact_function_scores_options_one_by_one():
    question = Question([1], ([2, 3], [4]), divisors=(4.0, 1.0))
    found = score_one_by_one([question], lambda prompt, answer: -float(len(answer)))[0]
    assert [s.value for s in found.options] == [-2, -1]
    assert (found.best, found.best_divided) == (1, 0)
    check_exact(LikelihoodConfig(mc_num=4, batch_size=4))
    with pytest.raises(UserError, match="method=confidence is for diffusion models"):
        check_exact(LikelihoodConfig(method="confidence"))


@pytest.mark.parametrize(
    ("question", "options", "message"),
    [
        (Question([1], ()), {}, "question 0 has 0 options"),
        (Question([1], ([2],), (0.0,)), {}, r"divisors=\(0.0,\) must be 1 numbers above 0"),
        (Question([1], ([2], [])), {}, "question 0: answer is empty"),
        (Question([99], ([2],)), {}, "question 0: prompt holds id 99"),
        (Question([1], ([2] * 13,)), {"method": "exact"}, r"answer of 13 tokens.*2\*\*13 - 1"),
        (Question([1] * 127, ([2],)), {"padd_eos": True}, r"127 \+ 2 = 129 tokens"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(question, options, message):
    with pytest.raises(UserError, match=message):
        score(MODEL, [question], LikelihoodConfig(**options))
