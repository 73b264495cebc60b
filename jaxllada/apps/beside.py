"""The other side of `bench --beside`: a package of ours as the program that takes turns.

It measures the task it is given with the same workloads as `bench` itself, knows every strategy it
is asked for, and tells nothing but JSON on stdout.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

import numpy as np

from jaxllada.apps.bench import BenchConfig
from jaxllada.apps.bench_backend import Backend
from jaxllada.apps.bench_cases import exact_settings, sampling_call, train_case
from jaxllada.apps.bench_strategies import EXACT, chosen
from jaxllada.common.config.fields import keys_of
from jaxllada.common.config.load import from_mapping
from jaxllada.common.errors import UserError
from jaxllada.common.memory import keep_freed_memory

Call = Callable[[], dict[str, Any]]


def main(make: Callable[[Sequence[str]], Backend], argv: Sequence[str]) -> int:
    """Serves the task in the last of `argv`; `make` gets the arguments before it.

    Returns 0 when the input ends, 2 after wrong input, which is told on stderr.
    """
    keep_freed_memory()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    try:
        task = _task(argv)
        serve(make(argv[:-1]), task, sys.stdin, answers)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: {sys.executable} lacks {error.name}, which this needs", file=sys.stderr)
        return 2
    return 0


def serve(backend: Backend, task: Mapping[str, Any], requests: TextIO, answers: TextIO) -> None:
    """Builds what the task names, says when it is ready, and answers every line."""
    calls = prepared(backend, task)
    backend.forget_peaks()
    _tell(answers, {"name": backend.program, "strategies": list(calls)})
    for line in requests:
        result = calls[json.loads(line).get("strategy", EXACT)]()
        peaks = backend.peaks()
        _tell(answers, {**peaks, "peak_bytes": peaks["peak_resident_bytes"], **result})


def prepared(backend: Backend, task: Mapping[str, Any]) -> dict[str, Call]:
    """What can be called for a task: a training step, or a generation by every strategy.

    Everything is compiled, and no training step has been made.
    """
    known = {key: task[key] for key in keys_of(BenchConfig) if key in task}
    values = known | {"model_name_or_path": task["folder"], "beside": (), "json": False}
    options = from_mapping(BenchConfig, values, where="the task")
    if options.task == "train":
        case = train_case(options, backend)
        if case.task["noisy"] != task["noisy"]:
            raise UserError(f"seed={options.seed}: the batch of the task is another one here")
        return {EXACT: case.call}
    settings = chosen(options.strategies, exact_settings(options))
    sampler, prompt = backend.sampler(options), np.array(task["prompt"])
    calls = {name: sampling_call(sampler, prompt, ways) for name, ways in settings.items()}
    for call in calls.values():
        call()
    return calls


def _task(argv: Sequence[str]) -> dict[str, Any]:
    try:
        task = json.loads(argv[-1] if argv else "")
    except json.JSONDecodeError:
        task = None
    if not isinstance(task, dict) or "folder" not in task:
        raise UserError("no task given: this is started by `bench --beside`, which appends one")
    return task


def _tell(answers: TextIO, message: Mapping[str, Any]) -> None:
    print(json.dumps(message), file=answers, flush=True)
