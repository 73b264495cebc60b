"""Programs that a model wrote: which pass, what they cannot touch, and how shares are counted."""

import itertools
import os
import sys
import time

import pytest

from jaxllada.apps.tasks.code_runs import CodeEval, own_code_eval, pass_at, passes

RIGHT = {
    "a test that holds": "x = 1\nassert x == 1",
    "a part for scripts, which is not run": "if __name__ == '__main__':\n    1 / 0",
    "a thread that does not end": "import threading, time\n"
    "threading.Thread(target=time.sleep, args=(60,)).start()",
    "much output": "print('x' * 10**7)",
    "a folder of its own": "import os\nassert os.listdir('.') == []\nopen('f', 'w').close()",
    "no variables of ours": "import os\nassert 'HF_TOKEN' not in os.environ",
}
WRONG = {
    "a test that fails": "assert 1 == 2",
    "no Python": "def f(:",
    "leaving early": "import sys\nsys.exit(0)\nassert False",
    "leaving at once": "import os\nos._exit(0)",
    "asking for input": "x = input()",
    "no end": "while True: pass",
    "an end that is put off": "import time\ntry:\n    time.sleep(60)\nexcept BaseException: pass",
}


@pytest.mark.parametrize("program", RIGHT.values(), ids=RIGHT)
def test_a_program_that_runs_to_its_end_passes(program, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert passes(program, seconds=20.0)


@pytest.mark.parametrize("program", WRONG.values(), ids=WRONG)
def test_any_other_does_not(program):
    begun = time.monotonic()
    assert not passes(program, seconds=1.0)
    assert time.monotonic() - begun < 20


def test_what_a_program_starts_is_ended_with_it(tmp_path):
    file = tmp_path / "late"
    later = f"import time; time.sleep(1); open({str(file)!r}, 'w')"
    assert passes(f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {later!r}])")
    time.sleep(1.5)
    assert not file.exists()


def test_the_share_is_that_of_draws_without_replacement():
    for n, right in ((1, 0), (1, 1), (4, 1), (5, 3)):
        for k in range(1, n + 1):
            draws = list(itertools.combinations(range(n), k))
            share = sum(any(i < right for i in draw) for draw in draws) / len(draws)
            assert pass_at(k, n, right) == pytest.approx(share)


def test_candidates_are_judged_with_the_test_of_their_problem():
    shares, passed = CodeEval().compute(
        references=["assert f(2) == 4", "assert f(2) == 5"],
        predictions=[["def f(x): return 2 * x", "def f(x): return 5"], ["f = 1", "f = len"]],
        k=[1, 2, 3],
    )
    assert passed == {0: [True, False], 1: [False, False]}
    assert shares == {"pass@1": 0.25, "pass@2": 0.5}


def test_it_stands_in_for_one_metric_and_for_a_while(monkeypatch):
    monkeypatch.delitem(sys.modules, "evaluate", raising=False)
    with own_code_eval():
        import evaluate

        assert isinstance(evaluate.load("code_eval"), CodeEval)
    assert "evaluate" not in sys.modules
    monkeypatch.setitem(sys.modules, "evaluate", os)
    with own_code_eval():
        assert sys.modules["evaluate"] is not os
    assert sys.modules["evaluate"] is os
