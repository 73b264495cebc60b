"""Golden values, and what is exact to the bit, hold for programs as XLA compiles them by itself.

`tests/conftest.py` turns XLA's optimiser and newer emitters, and built kernels, off; users have
them on.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORWARD = "tests/jax/test_golden_forward.py"
GOLDEN = [
    f"{FORWARD}::test_logits_equal_the_released_model",
    f"{FORWARD}::test_logits_under_left_padding_equal_the_released_model",
    f"{FORWARD}::test_pretraining_loss_equals_the_published_one",
    f"{FORWARD}::test_production_loss_equals_the_published_one",
    "tests/jax/test_sampling.py::test_golden_answers_are_token_exact",
    "tests/jax/test_step.py::test_a_step_is_one_adamw_update_of_the_oracle_gradient",
]


# Where tests are skipped everywhere else.
FILES = [
    path
    for path in sorted((ROOT / "tests").glob("*/test_*.py"))
    if "@pytest.mark.own_kernels\n" in path.read_text() and path != Path(__file__)
]


def passed(*arguments: str) -> int:
    """Runs tests in a process without the flags of conftest.py and counts those that passed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, "-p", "no:cacheprovider"],
        cwd=ROOT, env={**os.environ, "XLA_FLAGS": "", "JAXLLADA_NATIVE": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
    return int(re.search(r"(\d+) passed", done.stdout)[1])


@pytest.mark.slow
def test_golden_values_hold():
    assert passed(*GOLDEN) >= 20


@pytest.mark.slow
def test_bits_are_kept():
    marked = sum(path.read_text().count("@pytest.mark.own_kernels\n") for path in FILES)
    assert passed(*map(str, FILES), "-m", "own_kernels") == marked > 0
