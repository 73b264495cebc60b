"""Timing side by side."""

import sys
import time

import pytest

from jaxllada.common.errors import UserError
from jaxllada.common.timing import (
    Times,
    Worker,
    forget_peak_memory,
    peak_memory,
    speed_ratio,
    take_turns,
)

ECHO = """
import json, sys
task = json.loads(sys.argv[-1])
print(json.dumps({"ready": True}), flush=True)
for number, line in enumerate(sys.stdin):
    print(json.dumps({"seconds": 0.5, "number": number, "steps": task["steps"]}), flush=True)
"""


@pytest.fixture
def program(tmp_path):
    def write(source):
        file = tmp_path / "worker.py"
        file.write_text(source)
        return f"{sys.executable} {file}"

    return write


def test_contestants_take_turns_and_the_first_rounds_do_not_count():
    calls = []
    times = take_turns(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=2
    )
    assert calls == ["a", "b"] * 5
    assert [len(times[name].seconds) for name in "ab"] == [3, 3]


def test_a_call_is_timed_unless_it_has_timed_itself():
    times = take_turns(
        {"slept": lambda: time.sleep(0.02), "told": lambda: {"seconds": 7.0}}, rounds=2
    )
    assert times["slept"].best >= 0.02
    assert times["told"].seconds == [7.0, 7.0]


def test_the_ratio_is_the_median_of_pairs_so_that_one_bad_round_does_not_count():
    ours, base = Times([1.0, 1.0, 50.0]), Times([4.0, 4.0, 200.0])
    assert speed_ratio(ours, base) == 4.0
    assert speed_ratio(Times([1.0, 1.0, 50.0]), Times([4.0, 4.0, 4.0])) == 4.0


def test_a_worker_gets_the_task_and_answers_every_call(program):
    worker = Worker(program(ECHO), {"steps": 9})
    assert worker.hello == {"ready": True}
    assert [worker()["number"] for _ in range(3)] == [0, 1, 2]
    assert worker()["steps"] == 9
    worker.close()


def test_a_worker_that_does_not_speak_json_is_refused(program):
    with pytest.raises(UserError, match="answered 'hello"):
        Worker(program("print('hello', flush=True)"), {})


def test_a_worker_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="beside='no-such-program' cannot be started"):
        Worker("no-such-program", {})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are reset on Linux only")
def test_a_peak_is_seen_and_can_be_forgotten():
    forget_peak_memory()
    before = peak_memory()
    block = bytearray(200_000_000)
    assert peak_memory() - before > 150_000_000
    del block
    forget_peak_memory()
    assert peak_memory() - before < 100_000_000
