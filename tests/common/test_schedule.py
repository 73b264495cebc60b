"""The learning rate is the published function of the step."""

import math

import numpy as np
import pytest

from jaxllada.common.config.sft import SftConfig
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.errors import UserError
from jaxllada.common.schedule import Schedule, learning_rate_schedule, parse_segments, segment_rate

LLADA_8B = "2000: 0 -> 4e-4; 1.2T: 4e-4; 2.0T: 1e-4; 2.3T: 1e-4 -> 1e-5"


@pytest.fixture
def llada_8b():
    return parse_segments(LLADA_8B, tokens_per_step=1280 * 4096)


def test_the_paper_run_breaks_at_its_published_iterations(llada_8b):
    """2.3T tokens are 438,690 iterations: 228,882 + 152,588 + 57,220 (arXiv:2502.09992v3, 2.2)."""
    assert [segment.end for segment in llada_8b] == [2000, 228_882, 228_882 + 152_588, 438_690]


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.0),
        (500, 1e-4),
        (2000, 4e-4),
        (228_881, 4e-4),
        (228_882, 1e-4),
        (381_469, 1e-4),
        (381_470 + 57_220 // 2, 5.5e-5),
        (438_690, 1e-5),
        (999_999, 1e-5),
    ],
)
def test_the_paper_run_has_its_published_rates(llada_8b, step, rate):
    assert segment_rate(llada_8b, step) == pytest.approx(rate, rel=1e-12)


def test_the_paper_finetuning_is_a_wsd():
    """0 to 2.5e-5 over 50 steps, constant, the last tenth linear to 2.5e-6 (arXiv:2502.09992v3)."""
    rate = Schedule(
        kind="wsd", peak=2.5e-5, total_steps=1000, warmup_steps=50, decay_steps=100, floor=2.5e-6
    )
    steps = [0, 25, 50, 899, 900, 950, 1000]
    expected = np.interp(steps, [0, 50, 900, 1000], [0, 2.5e-5, 2.5e-5, 2.5e-6])
    np.testing.assert_allclose([rate(step) for step in steps], expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "wsd"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_a_rate_rises_to_its_peak_and_never_leaves_its_bounds(kind, warmup):
    rate = Schedule(
        kind=kind, peak=1.0, total_steps=100, warmup_steps=warmup, decay_steps=20, floor=0.1
    )
    rates = [rate(step) for step in range(130)]
    assert rates[:warmup] == [step / warmup for step in range(warmup)]
    assert rates[warmup] == max(rates) == 1.0
    assert np.all(np.diff(rates[warmup:]) <= 0)
    assert rates[100] == rates[-1] == pytest.approx(1.0 if kind == "constant" else 0.1)


def test_linear_and_cosine_cross_half_way():
    for kind in ("linear", "cosine"):
        rate = Schedule(kind=kind, peak=2.0, total_steps=110, warmup_steps=10)
        assert rate(60) == pytest.approx(1.0)
    quarter = 10 + 25
    assert rate(quarter) == pytest.approx(1 + math.cos(math.pi / 4))


@pytest.mark.parametrize(
    "text",
    ["", "10", "10: x", "10: 1e-4 -> ", "5K 1e-4", "10: 1e-4; 10: 1e-5", "0: 1e-4", "1.5: 1e-4",
     "10: -1e-4", "10: inf", "10: nan"],
)  # fmt: skip
def test_malformed_segments_are_named(text):
    with pytest.raises(UserError, match="lr_segments="):
        parse_segments(text, tokens_per_step=10)


def test_the_config_fixes_every_part_of_the_schedule():
    config = TrainConfig(
        learning_rate=2e-4, lr_scheduler_type="wsd", warmup_ratio=0.1, lr_decay_ratio=0.2,
        min_lr_ratio=0.5,
    )  # fmt: skip
    rate = learning_rate_schedule(config, total_steps=50, tokens_per_step=1)
    expected = np.interp(np.arange(51), [0, 5, 40, 50], [0, 2e-4, 2e-4, 1e-4])
    np.testing.assert_allclose([rate(step) for step in range(51)], expected, rtol=1e-12)
    config = TrainConfig(lr_scheduler_type="segments", lr_segments="4K: 1e-3; 40: 1e-4")
    rate = learning_rate_schedule(config, total_steps=50, tokens_per_step=200)
    assert [rate(19), rate(20)] == [1e-3, 1e-4]


def test_a_decay_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match="do not fit into 100"):
        Schedule(kind="wsd", peak=1.0, total_steps=100, warmup_steps=60, decay_steps=50)


def test_the_published_fine_tuning_schedule_by_name():
    """0 to the peak in 50 iterations, constant, the last 10 % to a tenth (2502.09992v3, 2.3)."""
    rate = learning_rate_schedule(
        SftConfig(learning_rate=2.5e-5), total_steps=10_000, tokens_per_step=1
    )
    for step, expected in [(0, 0.0), (25, 1.25e-5), (50, 2.5e-5), (9000, 2.5e-5),
                           (9500, 1.375e-5), (10_000, 2.5e-6)]:  # fmt: skip
        assert rate(step) == pytest.approx(expected, rel=1e-9)


def test_named_schedules_are_the_plain_ones_spelt_out():
    def rates(total, **settings):
        rate = learning_rate_schedule(
            TrainConfig(learning_rate=1.0, **settings), total_steps=total, tokens_per_step=1
        )
        return [rate(step) for step in range(total + 1)]

    dllm = rates(200, lr_scheduler_type="dllm")
    assert dllm == rates(200, lr_scheduler_type="cosine", warmup_ratio=0.1)
    short = rates(100, lr_scheduler_type="llada-sft")  # 50 of 100 steps would be half the run
    assert short == rates(
        100, lr_scheduler_type="wsd", warmup_steps=10, lr_decay_ratio=0.1, min_lr_ratio=0.1
    )
    own = rates(100, lr_scheduler_type="llada-sft", warmup_steps=3)
    assert own != short
    assert own[3] == 1.0


@pytest.mark.parametrize("key", ["lr_decay_ratio", "min_lr_ratio"])
def test_a_named_schedule_takes_no_other_decay(key):
    with pytest.raises(UserError, match=f"{key}=0.5: expected left out beside lr_scheduler_type"):
        TrainConfig(lr_scheduler_type="llada-sft", **{key: 0.5})
