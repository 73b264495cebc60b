"""Timing side by side: contestants take turns in one run, so that all meet the same machine.

A contestant is a function of this process or another program that speaks one line of JSON a call
(`Worker`), for code that lives in another environment.
"""

import contextlib
import ctypes
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxllada.common.errors import UserError
from jaxllada.common.memory import allocator_environment

Call = Callable[[], Any]


@dataclass
class Times:
    """Seconds of each call of one contestant, in the order of the rounds."""

    seconds: list[float] = field(default_factory=list)
    result: Any = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)


def take_turns(
    contestants: Mapping[str, Call], *, rounds: int, warmup: int = 1
) -> dict[str, Times]:
    """Calls every contestant once a round; a call ends when its result is there.

    A call that returns a mapping with `seconds` has timed itself (a `Worker` does, so that the
    pipe is not counted).
    """
    times = {name: Times() for name in contestants}
    for round_number in range(warmup + rounds):
        for name, call in contestants.items():
            begun = time.perf_counter()
            result = call()
            seconds = time.perf_counter() - begun
            if isinstance(result, Mapping) and "seconds" in result:
                seconds = float(result["seconds"])
            times[name].result = result
            if round_number >= warmup:
                times[name].seconds.append(seconds)
    return times


def speed_ratio(times: Times, base: Times) -> float:
    """How many times faster `times` is than `base`: the median over rounds of paired ratios."""
    return statistics.median(b / a for a, b in zip(times.seconds, base.seconds, strict=True))


def forget_peak_memory() -> None:
    """Returns free memory to the system and, on Linux, starts `peak_memory` anew."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Largest resident size of this process, in bytes; since `forget_peak_memory` on Linux."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


class Worker:
    """Another program as a contestant.

    It is started with one JSON argument (the task) appended to its command, prints one JSON line
    when ready, and then answers every line it reads with one JSON line that has `seconds` and
    whatever else it wants to tell (`peak_bytes`, `tokens`). It ends when its input does. A line it
    reads is a JSON object with the keyword arguments of the call. Its allocator has the settings
    that ours has: without them, a program that frees large blocks can take a third longer.
    """

    def __init__(self, command: str, task: Mapping[str, Any]):
        self.command = command
        try:
            self._process = subprocess.Popen(
                [*shlex.split(command), json.dumps(task)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **allocator_environment()},
            )
        except OSError as error:
            raise UserError(f"beside={command!r} cannot be started: {error}") from None
        self.hello = self._answer()

    def __call__(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            answer = json.loads(line)
        except json.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            self._process.kill()
            raise UserError(f"beside={self.command!r} answered {line[:80]!r}, expected JSON")
        return answer

    def close(self) -> None:
        """Lets the program end."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
