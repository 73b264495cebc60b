"""Runs the programs that a model wrote, for the tasks that score code by its tests.

lm_eval's HumanEval and MBPP take the metric `code_eval` from the Hub. This one counts the same:
a program passes if it and its test run to the end within the time limit (Chen et al.,
arXiv:2107.03374v2, 2.2 and 2.1 for the unbiased pass@k), but needs no network. Every program runs
in a process of its own, in an empty folder, without the variables of this one's environment. That
keeps accidents small; it is no sandbox, which is why tasks of this kind ask to be confirmed.
"""

import importlib
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

SECONDS = 3.0
"""Time limit of a program, as code_eval has it."""
START = 60.0
"""More time than a busy machine needs to start Python."""
KEPT = ("PATH", "LANG", "LC_ALL", "SYSTEMROOT", "LD_LIBRARY_PATH")

# The program sees no names but the built-in ones. The word at the end tells a program that ran to
# its end from one that left early with exit code 0.
DRIVER = """
import os, signal, sys
word, pipe, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
source = sys.stdin.read()
sys.argv = [""]
signal.signal(signal.SIGALRM, signal.SIG_DFL)
signal.setitimer(signal.ITIMER_REAL, seconds)
exec(compile(source, "program", "exec"), {})
signal.setitimer(signal.ITIMER_REAL, 0)
os.write(pipe, word.encode())
os._exit(0)
"""


class CodeEval:
    """Has the interface of `evaluate.load("code_eval")` that tasks use."""

    def compute(
        self,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
        num_workers: int = 4,
        timeout: float = SECONDS,
    ) -> tuple[dict[str, float], dict[int, list[bool]]]:
        """Runs every candidate of problem i, `predictions[i]`, with the test `references[i]`.

        Returns {"pass@k": share} for each k that no problem has fewer candidates than, and which
        candidates passed. `timeout` is in seconds for each program.
        """
        with ThreadPoolExecutor(num_workers) as pool:
            runs = [
                [pool.submit(passes, f"{code}\n{test}", timeout) for code in candidates]
                for test, candidates in zip(references, predictions, strict=True)
            ]
            passed = {i: [run.result() for run in row] for i, row in enumerate(runs)}
        shares = {}
        for count in k:
            if all(len(row) >= count for row in passed.values()):
                parts = [pass_at(count, len(row), sum(row)) for row in passed.values()]
                shares[f"pass@{count}"] = sum(parts) / len(parts)
        return shares, passed


def pass_at(k: int, n: int, right: int) -> float:
    """Chance that k of n candidates, drawn without replacement, hold one of the `right` ones."""
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def passes(program: str, seconds: float = SECONDS) -> bool:
    """Whether a program runs to its end in time, in a process of its own."""
    word = secrets.token_hex(16)
    environment = {key: os.environ[key] for key in KEPT if key in os.environ}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    ours, theirs = os.pipe()
    try:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-I", "-c", DRIVER, word, str(theirs), str(seconds)]
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env=environment,
                pass_fds=(theirs,),
                start_new_session=True,
            )
            try:
                process.communicate(program.encode("utf-8", "replace"), timeout=seconds + START)
            except subprocess.TimeoutExpired:
                return False
            finally:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        os.set_blocking(ours, False)
        with suppress(BlockingIOError):
            return os.read(ours, len(word)) == word.encode()
        return False
    finally:
        os.close(ours)
        os.close(theirs)


@contextmanager
def own_code_eval() -> Iterator[None]:
    """Tasks that are made here take `CodeEval` where they ask `evaluate` for code_eval.

    A module stands in for `evaluate`, whose import takes seconds and brings PyTorch with it. Other
    metrics come from the real one.
    """
    real = sys.modules.get("evaluate")

    def load(path: str, *args: Any, **kwargs: Any) -> Any:
        if path == "code_eval":
            return CodeEval()
        sys.modules.pop("evaluate", None)
        return importlib.import_module("evaluate").load(path, *args, **kwargs)

    standing: Any = types.ModuleType("evaluate")
    standing.load = load
    sys.modules["evaluate"] = standing
    try:
        yield
    finally:
        if real is not None:
            sys.modules["evaluate"] = real
        elif sys.modules.get("evaluate") is standing:
            del sys.modules["evaluate"]
