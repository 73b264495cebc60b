"""The watch over spikes: free of the draw of mask rates, deaf to single batches, carried on."""

import types

import numpy as np
import pytest

from jaxllada.common.config.train import TrainConfig
from jaxllada.common.errors import UserError
from jaxllada.common.run.metrics import BINS
from jaxllada.common.run.spikes import LEARNING, SpikeWatch

COST = np.linspace(0.5, 5.0, BINS)
"""Nats per masked token in each bin of the mask rate: hard texts are those with little left."""


def step(rng, extra=0.0, *, rates=None, loss=1.0, spread=0.5):
    """A step of 8 rows of 64 tokens whose masked tokens cost `extra` more than usual."""
    nll, masked = np.zeros(BINS), np.zeros(BINS)
    for rate in rng.uniform(size=8) if rates is None else rates:
        place = min(int(rate * BINS), BINS - 1)
        count = rng.binomial(64, rate)
        masked[place] += count
        nll[place] += count * (COST[place] + extra) + spread * np.sqrt(count) * rng.normal()
    counts = types.SimpleNamespace(nll=nll.astype(np.float32), masked=masked.astype(np.float32))
    return types.SimpleNamespace(loss=loss, grad_norm=1.0, counts=counts)


def watch(steps=400, seed=0, **changes):
    rng = np.random.default_rng(seed)
    made = SpikeWatch(**{"sigma": 4.0, "limit": 5} | changes)
    for _ in range(steps):
        made.add(step(rng))
        assert not made.is_up()
    return made, rng


def test_a_loss_that_stays_up_is_found_after_as_many_steps_as_said():
    made, rng = watch()
    found = []
    for _ in range(6):
        made.add(step(rng, 1.0))
        found.append(made.is_up())
    assert found == [False] * 4 + [True] * 2
    assert "6 steps in a row" in made.message()


def test_steps_that_only_drew_higher_rates_are_no_spikes():
    # Their plain mean is far above all that went before, their cost at these rates is not.
    made, rng = watch(200)
    low = [step(rng, rates=np.full(8, 0.25)) for _ in range(200)]
    high = [step(rng, rates=np.full(8, 0.95)) for _ in range(20)]
    means = [[s.counts.nll.sum() / s.counts.masked.sum() for s in part] for part in (low, high)]
    assert min(means[1]) > np.mean(means[0]) + 20 * np.std(means[0])
    for one in low + high:
        made.add(one)
        made.is_up()
        assert made.streak == 0


def test_what_a_jagged_run_does_by_itself_is_no_spike():
    rng = np.random.default_rng(4)
    made, is_far = SpikeWatch(4.0, 1), 0
    for _ in range(400):
        one = step(rng, spread=8.0)
        made.add(one)
        assert not made.is_up()
        expected = (one.counts.masked * COST).sum()
        is_far += one.counts.nll.sum() > 1.15 * expected
    assert is_far > 20
    made.add(step(rng, 6.0, spread=8.0))
    assert made.is_up()


def test_steps_with_few_masked_tokens_do_not_hide_a_spike_in_others():
    rng = np.random.default_rng(5)
    made, many = SpikeWatch(4.0, 1), np.full(8, 0.9)
    for _ in range(150):
        for rates in (many, np.full(8, 0.02)):
            made.add(step(rng, rates=rates, spread=3.0))
            assert not made.is_up()
    made.add(step(rng, 1.0, rates=many, spread=3.0))
    assert made.is_up()


def test_a_run_that_has_become_calm_is_judged_as_calm():
    rng = np.random.default_rng(6)
    made = SpikeWatch(4.0, 1)
    for number in range(400):
        made.add(step(rng, spread=5.0 if number < 100 else 0.5))
        assert not made.is_up()
    made.add(step(rng, 1.0))
    assert made.is_up()


def test_odd_batches_between_others_and_a_falling_loss_are_no_trouble():
    made, rng = watch()
    for number in range(40):
        made.add(step(rng, 2.0 if number % 5 else 0.0))
        assert not made.is_up()
        assert made.streak == number % 5
    for number in range(100):
        made.add(step(rng, -0.004 * number))
        assert not made.is_up()
        assert made.streak == 0


def test_nothing_is_judged_before_there_is_something_to_compare_with():
    rng = np.random.default_rng(1)
    made = SpikeWatch(4.0, 1)
    for number in range(LEARNING):
        made.add(step(rng, float(number > LEARNING - 4)))
        assert not made.is_up()


def test_a_hundredth_above_a_steady_loss_is_no_spike():
    rng = np.random.default_rng(2)
    made = SpikeWatch(4.0, 1)
    for number in range(120):
        made.add(step(rng, 0.02 if number > 100 else 0.0, spread=0.0))
        assert not made.is_up()
    made.add(step(rng, 1.0, spread=0.0))
    assert made.is_up()


def test_steps_that_are_not_finite_are_left_to_the_guard():
    made, rng = watch(60)
    before = made.state()
    made.add(step(rng, np.nan, loss=np.nan))
    made.add(step(rng, 5.0, loss=np.inf))
    assert made.state() == before


def test_the_last_steps_are_left_until_they_are_asked_for():
    fetched = []

    def fetch(steps):
        fetched.extend(steps)
        return steps

    made = SpikeWatch(4.0, 5, fetch)
    steps = [step(np.random.default_rng(i)) for i in range(4)]
    for one in steps:
        made.add(one)
        made.is_up(ahead=2)
    assert fetched == steps[:2]
    made.state()
    assert fetched == steps


@pytest.mark.parametrize("cut", [1, 50, 203])
def test_a_watch_that_was_saved_and_taken_up_judges_alike(cut):
    rng = np.random.default_rng(3)
    steps = [step(rng, 1.0 if number >= 201 else 0.0) for number in range(206)]
    whole, part = SpikeWatch(4.0, 5), SpikeWatch(4.0, 5)
    for one in steps[:cut]:
        part.add(one)
    again = SpikeWatch(4.0, 5)
    again.load(part.state())
    for number, one in enumerate(steps):
        whole.add(one)
        expected = whole.is_up()
        if number >= cut:
            again.add(one)
            assert again.is_up() == expected
    assert again.state() == whole.state()
    assert whole.is_up()


def test_a_watch_that_forgets_learns_anew():
    made, rng = watch()
    for _ in range(5):
        made.add(step(rng, 1.0))
    assert made.is_up()
    made.forget()
    for _ in range(100):
        made.add(step(rng, 1.0))
        assert not made.is_up()


def test_a_watch_that_is_off_asks_the_device_for_nothing():
    made = SpikeWatch(4.0, 1, pytest.fail, is_on=False)
    made.add(step(np.random.default_rng(0)))
    assert not made.is_up()
    made.state()


@pytest.mark.parametrize(
    "values",
    [
        {"spike_sigma": 0},
        {"spike_sigma": float("inf")},
        {"max_spiking_steps": 0},
        {"loss_spike": "ignore", "spike_sigma": 3.0},
        {"loss_spike": "ignore", "max_spiking_steps": 3},
        {"loss_spike": "rollback", "max_rollbacks": 0},
    ],
)
def test_settings_that_cannot_work_are_refused(values):
    with pytest.raises(UserError, match=list(values)[-1]):
        TrainConfig(**values)
