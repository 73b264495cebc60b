"""Spikes of the loss in JAX: one run, since the loop that watches is the same for both backends."""

import pytest

from tests.both.spikes import (  # noqa: F401
    _no_picture,
    test_a_spike_rolls_back_before_it_began_and_passes_its_data,
)
from tests.jax import tiny_run


@pytest.fixture
def runs():
    return tiny_run
