"""Hierarchical and credit decoding when compiled: the tests of both backends, and JAX's own."""

import dataclasses

import pytest

from jaxllada.common.config.adaptive import Credit, Hierarchy
from jaxllada.common.errors import UserError
from jaxllada.sampling.loop import advance
from tests.both.decoders import *  # noqa: F403
from tests.both.decoders import CONFIG
from tests.jax import backend as jax_backend
from tests.sampling_cases import PROMPTS

HIERARCHY = "hierarchy:0.3,0.1"


@pytest.fixture(scope="module")
def backend():
    return jax_backend


def test_numbers_are_data(model):
    def order(numbers):
        config = dataclasses.replace(CONFIG, selection=Credit(**numbers))
        return jax_backend.trace(model, PROMPTS[:1], config).order

    numbers = {"threshold": 0.8, "decay": 0.1, "alpha": 1.5, "beta": 0.5, "gamma": 0.6}
    base = order(numbers)
    compiled = advance._cache_size()
    others = {"threshold": 0.6, "decay": 0.05, "alpha": 0.7, "beta": 0.8, "gamma": 0.2}
    for name, value in others.items():
        assert (order(numbers | {name: value}) != base).any(), name
    assert advance._cache_size() == compiled


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": "hierarchy:0.5,0.7"}, r"low=0.7 is above threshold=0.5"),
        ({"selection": "hierarchy:1.0,decay=0.1"}, "leaves decay=0.1 nothing to come down to"),
        ({"selection": "hierarchy:-1"}, "threshold=-1.0 must be a finite number"),
        ({"selection": "credit:0.9,alpha=0"}, "alpha=0 gives no credit: use selection=threshold"),
        ({"selection": "credit:0.9,beta=1.2"}, r"beta=1.2 must lie in \[0, 1\]"),
        ({"selection": "credit:0.9,gamma=-1"}, "gamma=-1.0 must be a finite number"),
        ({"selection": "credit:0.9,delta=1"}, "'delta=1' is unknown"),
        ({"selection": HIERARCHY, "remasking": "random"}, "two orders of positions"),
        ({"compat": "official-2025"}, "selection=credit:0.9,alpha=3.0 is younger than the sampler"),
        ({"compat": "official-2025", "selection": HIERARCHY}, "leave compat out"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_rules_are_given_as_values_or_text():
    for rule, text in [
        (Credit(0.8, gamma=0.5), "credit:0.8,gamma=0.5"),
        (Hierarchy(low=0.5), "hierarchy:0.92,0.5"),
    ]:
        config = dataclasses.replace(CONFIG, selection=rule)
        assert (config.selection, config.selection_rule) == (text, rule)
