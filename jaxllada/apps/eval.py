"""Evaluates a model on the tasks of lm_eval: the verb `eval` of both packages.

Requests are laid out first; then what is not kept from an earlier run is answered, and lm_eval
scores. Tables go to stdout, everything else to stderr.
"""

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxllada.apps.answering import OpenEngine, look_up
from jaxllada.apps.evaluation.answers_kept import KeptAnswers
from jaxllada.apps.evaluation.asked import answer, cost, keys_of, missing
from jaxllada.apps.evaluation.files import write_run
from jaxllada.apps.evaluation.fingerprint import fingerprint
from jaxllada.apps.evaluation.job import Loaded
from jaxllada.apps.evaluation.jobs import build, jobs_of, lay_out
from jaxllada.apps.evaluation.keys import EvalOptions
from jaxllada.apps.evaluation.presence import PartFailed, Presence
from jaxllada.apps.evaluation.protocol import protocol_of, unused
from jaxllada.apps.evaluation.ranks import Part, part_of
from jaxllada.apps.evaluation.report import Run, environment, record, stored_type
from jaxllada.apps.evaluation.tables import terminal
from jaxllada.common.errors import UserError
from jaxllada.common.notices import notice
from jaxllada.common.version import __version__

ANSWERS = "answers"
"""The folder of finished answers inside the output."""
RESAMPLES = 1000
"""Resamples for standard errors that have no formula, such as that of a perplexity."""


class Backend(NamedTuple):
    """What runs the model."""

    package: str
    """jaxllada or npu_backend."""
    open_engine: OpenEngine
    hardware: Callable[[Any], str]
    """(options) -> the devices that are used, in words."""


def run(config: EvalOptions, backend: Backend) -> int:
    """Answers, scores and prints; returns 0, or 1 where another part failed."""
    jobs = jobs_of(config)
    if config.download:
        return _save_data([task for job in jobs for task in job.tasks], config.download)
    part = part_of(config.part)
    if not part.is_whole and not config.output:
        raise UserError(f"part={part} needs output, a folder that all parts write to")
    _, tokenizer = look_up(config, weights=False)
    built = [build(job, config, tokenizer) for job in jobs]
    told = unused(config, {kind for one in built for kind in one.instances})
    if told:
        notice(told)
    origin, tokenizer = look_up(config)
    assert origin.folder is not None
    print_of = fingerprint(origin.folder, config.adapter, config.average)
    name = f"{backend.package} {__version__} {config.dtype} {print_of} {tokenizer.digest()}"
    loaded = [lay_out(one, tokenizer, origin.config, name) for one in built]
    if not config.output:
        notice("output is not given: results are printed only, and a run that is cut is lost")
    found, kept = {}, _kept(config, part)
    works = [work for one in loaded for work in one.works.values()]
    for one in loaded:
        found[one.job.name] = sum(key in kept for key in keys_of(list(one.works.values())))
    folder = Path(config.output)
    presence = None if part.is_whole else Presence(folder, part)
    engine = None
    try:
        with presence or contextlib.nullcontext():
            if part.index in missing(works, kept, part.count):
                engine = backend.open_engine(config, origin.folder)
                answer(works, engine, kept, part)
            left = functools.partial(missing, works, kept, part.count)
            if presence is not None and part.scores and not presence.wait(left):
                answer(works, engine or backend.open_engine(config, origin.folder), kept)
    except PartFailed as error:
        notice(f"error: {error}; the same command again goes on from the answers")
        return 1
    kept.close()
    if not part.scores:
        scores = "part 0" if part.is_together else "a run without part"
        notice(f"part {part} is answered; {scores} scores when all parts are")
        return 0
    surroundings = environment(
        backend=backend.package,
        hardware=_times(part.count, backend.hardware(config)),
        dtype=config.dtype or stored_type(origin.folder),
    )
    about = {"model": config.model_name_or_path, "adapter": config.adapter, "weights": print_of}
    runs = []
    for one in loaded:
        begun = time.perf_counter()
        outcome = _scored(one, kept, config)
        seconds = time.perf_counter() - begun + sum(w.seconds for w in one.works.values())
        runs.append(_record(one, outcome, kept, config, about, surroundings, found, seconds))
        if config.output:
            write_run(folder, runs[-1], outcome["samples"])
    print(terminal(runs))
    if config.output:
        notice(f"results, tables and samples: {folder}")
    return 0


def _times(processes: int, hardware: str) -> str:
    return hardware if processes == 1 else f"{processes} processes, each on {hardware}"


def _save_data(tasks: Sequence[str], folder: str) -> int:
    from jaxllada.apps.tasks.local_tasks import download

    saved = download(tuple(dict.fromkeys(tasks)), folder)
    for name, splits in saved.rows.items():
        print(f"{name}: {', '.join(f'{rows} rows of {split}' for split, rows in splits.items())}")
    for reason in saved.failed.values():
        notice(f"error: {reason}")
    if saved.rows:
        notice(f"on a machine without network: --data {folder}")
    return 1 if saved.failed else 0


def _kept(config: EvalOptions, part: Part) -> KeptAnswers:
    if not config.output:
        return KeptAnswers()
    name = "answers" if part.is_whole else f"part-{part.index}-of-{part.count}"
    return KeptAnswers(Path(config.output) / ANSWERS, name)


def _scored(loaded: Loaded, kept: KeptAnswers, config: EvalOptions) -> Mapping[str, Any]:
    """What lm_eval makes of the answers."""
    from lm_eval.evaluator import evaluate

    model: Any = _Answered(loaded, kept)
    # Resampling would fork a process that runs threads of a framework.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    with contextlib.redirect_stdout(sys.stderr):
        outcome = evaluate(
            lm=model,
            task_dict=loaded.tasks,
            limit=config.limit or None,  # pyright: ignore[reportArgumentType]
            bootstrap_iters=RESAMPLES,
            apply_chat_template=loaded.job.chat,
            fewshot_as_multiturn=loaded.job.fewshot_as_multiturn,
            system_instruction=config.system_instruction or None,
            confirm_run_unsafe_code=config.confirm_run_unsafe_code,
            log_samples=True,
        )
    assert outcome is not None
    return outcome  # pyright: ignore[reportReturnType]


class _Answered:
    """A model of lm_eval whose answers are all there, in the order of its requests."""

    rank, world_size = 0, 1

    def __init__(self, loaded: Loaded, kept: KeptAnswers):
        self._works, self._kept = loaded.works, kept

    def apply_chat_template(self, *_: Any, **__: Any) -> str:
        raise AssertionError("prompts are built already")

    def _results(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        work = self._works[kind]
        assert len(requests) == len(work.keys)
        return [work.result(i, self._kept) for i in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        return self._results("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[Any]:
        return self._results("loglikelihood_rolling", requests)

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        return self._results("generate_until", requests)


def _record(
    loaded: Loaded,
    outcome: Mapping[str, Any],
    kept: KeptAnswers,
    config: EvalOptions,
    about: Mapping[str, Any],
    surroundings: Mapping[str, Any],
    found: Mapping[str, int],
    seconds: float,
) -> Run:
    job, works = loaded.job, list(loaded.works.values())
    cut = sum(bool(kept[key].get("cut")) for key in keys_of(works))
    if cut:
        notice(f"{job.name}: the front of {cut} prompts was cut off (too_long=cut)")
    return record(
        outcome,
        outcome["samples"],
        name=job.name,
        tasks=loaded.names,
        recipe=job.recipe,
        changed=job.changed,
        protocol={**about, **protocol_of(loaded, config), "cut_prompts": cut},
        cost=cost(works, kept, found[job.name], seconds),
        environment=surroundings,
    )
