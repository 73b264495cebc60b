"""All of these tests again under transformers 4.57, which launch/hf4.sh puts beside .venv."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

ROOT = Path(__file__).parents[2]
OLD = ROOT / ".hf4"
# Not the adapters: the peft beside transformers 5 does not know version 4.
TESTS = sorted(str(f) for f in Path(__file__).parent.glob("test_*.py") if "adapters" not in f.name)


@pytest.mark.slow
@pytest.mark.skipif(not (OLD / ".installed").is_file(), reason="no .hf4: run launch/hf4.sh")
@pytest.mark.skipif(transformers.__version__ < "5", reason="this is the run under transformers 4")
def test_exported_folders_run_under_transformers_4():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *TESTS, "-p", "no:cacheprovider", "-rs"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(OLD)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert passed >= 120, done.stdout


def test_the_version_is_the_one_that_was_asked_for():
    """In the run under 4.57 the folder on PYTHONPATH has to win over .venv."""
    asked = os.environ.get("PYTHONPATH", "").split(os.pathsep)[0] == str(OLD)
    assert transformers.__version__.startswith("4.57" if asked else "5.")
