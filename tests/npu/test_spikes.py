"""Spikes of the loss in runs of torch: the tests of both backends."""

import pytest

from tests.both.spikes import *  # noqa: F403
from tests.npu import tiny_run


@pytest.fixture
def runs():
    return tiny_run
