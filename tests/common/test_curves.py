"""Curves are what the metrics say: gaps stay gaps, smoothing keeps lines and means."""

import math

import numpy as np
import pytest

from jaxllada.common.curves import read_curves, smooth
from jaxllada.common.errors import UserError
from jaxllada.common.tracking import MetricWriter


def written(folder, *lines):
    writer = MetricWriter(folder / "metrics.jsonl")
    for step, metrics in lines:
        writer.log(metrics, step)
    writer.close()
    return folder


def test_curves_hold_what_was_logged(tmp_path):
    folder = written(
        tmp_path / "mine",
        (0, {"event": "start", "uniform_bound": 4.0, "unigram_bound": 3.0}),
        (0, {"eval_bound": 4.1, "eval_standard_error": 0.2}),
        (10, {"loss": 2.0, "learning_rate": 0.1, "tokens": 640, "nll_by_rate": [1.0, None]}),
        (20, {"loss": math.nan, "tokens": 1280, "nll_by_rate": [0.5, 2.0]}),
        (20, {"event": "rollback"}),
    )
    for path in (folder, folder / "metrics.jsonl"):
        curves = read_curves(path)
        assert curves.name == "mine"
        np.testing.assert_array_equal(curves.loss.steps, [10, 20])
        np.testing.assert_array_equal(curves.loss.values, [2.0, math.nan])
        np.testing.assert_array_equal(curves.bound.values, [4.1])
        np.testing.assert_array_equal(curves.bound_error.values, [0.2])
        np.testing.assert_array_equal(curves.learning_rate.values, [0.1])
        np.testing.assert_array_equal([c.values for c in curves.by_rate], [[1, 0.5], [np.nan, 2]])
        assert curves.baselines == {"uniform": 4.0, "unigram": 3.0}
        assert curves.tokens_per_step == 64
        assert curves.by_class == {}
        assert (20.0, "rollback") in curves.events


def test_classes_of_answer_tokens_have_curves_of_their_own(tmp_path):
    folder = written(
        tmp_path / "sft",
        (1, {"loss": 2.0, "content_nll": 3.0, "first_eos_nll": None, "padding_eos_nll": 0.5}),
        (2, {"loss": 1.0, "content_nll": 2.0, "first_eos_nll": 1.0, "padding_eos_nll": None}),
    )
    found = read_curves(folder).by_class
    assert list(found) == ["content", "first EOS", "padding EOS"]
    assert [curve.values.tolist() for curve in found.values()] == [[3.0, 2.0], [1.0], [0.5]]
    assert found["first EOS"].steps.tolist() == [2]


def test_a_run_without_losses_is_told(tmp_path):
    with pytest.raises(UserError, match="has no line with 'loss'"):
        read_curves(written(tmp_path, (1, {"learning_rate": 1.0})))


@pytest.mark.parametrize("reach", [0, 1, 3, 50])
def test_smoothing_keeps_a_straight_line(reach):
    line = 3.0 - 0.5 * np.arange(20)
    np.testing.assert_allclose(smooth(line, reach), line, atol=1e-9)


def test_smoothing_is_a_least_squares_line_in_a_window():
    values = np.random.default_rng(0).normal(size=40)
    values[[3, 17, 18]] = np.nan
    found = smooth(values, 4)
    for i in range(40):
        x = np.arange(max(0, i - 4), min(40, i + 5))
        x = x[np.isfinite(values[x])]
        np.testing.assert_allclose(found[i], np.polyval(np.polyfit(x, values[x], 1), i), atol=1e-9)


def test_smoothing_leaves_a_gap_wider_than_its_window():
    values = np.r_[np.ones(5), np.full(9, np.nan), np.ones(5)]
    assert np.isnan(smooth(values, 2)).sum() == 9 - 2 * 2
