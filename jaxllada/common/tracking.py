"""Metrics of a run: `metrics.jsonl` always, and trackers that cannot stop it.

A line of metrics.jsonl is one JSON object with `step`, `time` (Unix seconds) and what was logged.
It is the source of truth: `read_metrics` and the plots need nothing else. Trackers get the same
numbers; one that fails, at its start or at any later call, is dropped with one line of warning.
"""

import json
import math
import os
import re
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllada.common.errors import UserError, nearest
from jaxllada.common.manifest import write_atomically
from jaxllada.common.notices import warn
from jaxllada.common.trackers import Tracker, make_tracker

NAMES = ("tensorboard", "wandb", "swanlab", "mlflow")
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricWriter:
    """Appends lines to metrics.jsonl; each is whole on disk when `log` returns.

    `resume_step=None` begins a new file. A number continues the old one: lines of later steps and
    a torn last line are dropped first, so that no step stands twice. Lines with an `event` stay.
    """

    def __init__(self, path: str | os.PathLike[str], resume_step: int | None = None):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = None
        self.rewind(
            -math.inf if resume_step is None else resume_step, keep_events=resume_step is not None
        )

    def rewind(self, step: float, *, keep_events: bool = True) -> None:
        """Drops the lines of steps after `step`, in one atomic replacement."""
        self.close()
        kept = [
            row
            for row in _rows(self.path)
            if row.get("step", 0) <= step or (keep_events and "event" in row)
        ]
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Writes one line. Values are numbers, text, lists, or scalars of numpy or JAX."""
        row = {"step": int(step), "time": round(time.time(), 3)}
        row |= {key: _plain(value) for key, value in metrics.items()}
        if self._file is None:
            raise ValueError(f"{self.path} is closed")
        self._file.write(json.dumps(row, allow_nan=False) + "\n")

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl, non-finite numbers as floats, a torn last line left out.

    Raises UserError when there is no such file.
    """
    if not Path(path).is_file():
        raise UserError(f"no such file: {path}; a run folder has a metrics.jsonl")
    return [{key: _number(value) for key, value in row.items()} for row in _rows(Path(path))]


class Tracking:
    """The metric file and the chosen trackers of one run, as one.

    On a process that is not the main one every call does nothing.

    Args:
        folder: the run folder; holds metrics.jsonl and what trackers store locally.
        report_to: names from `NAMES`, as a list or comma-separated; `none` or nothing for none.
        run_name: the name the trackers show.
        resume_step: None for a new run, else the step the run continues after.
        trackers: ready trackers by name, instead of those of `report_to`.

    Raises:
        UserError: `report_to` holds an unknown name.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        report_to: str | Iterable[str] | None = None,
        *,
        run_name: str = "",
        resume_step: int | None = None,
        is_main: bool = True,
        trackers: Mapping[str, Tracker] | None = None,
    ):
        names = parse_report_to(report_to)
        self._writer: MetricWriter | None = None
        self._trackers: dict[str, Tracker] = {}
        if not is_main:
            return
        self._folder, self._is_new = Path(folder), resume_step is None
        self._writer = MetricWriter(self._folder / "metrics.jsonl", resume_step)
        if trackers is not None:
            self._trackers = dict(trackers)
            return
        for name in names:
            self._trackers[name] = make_tracker(
                name, self._folder, run_name or self._folder.name, resume_step
            )

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the trackers still in use."""
        return tuple(self._trackers)

    def start(self, config: Mapping[str, Any], run_id: str = "run") -> None:
        """Opens the trackers; `config` goes to them only, the run folder has its own copy.

        They know the run by `run_id` and some random letters, which a resumed run finds in its
        folder: two runs of one name are never mixed up.
        """
        if self._trackers:
            plain = {key: _plain(value) for key, value in config.items()}
            self._each("start", plain, self._identity(run_id))

    def _identity(self, run_id: str) -> str:
        file = self._folder / "tracker_id.txt"
        if self._is_new or not file.is_file():
            name = re.sub(r"[^A-Za-z0-9_-]+", "-", run_id).strip("-")[:48]
            write_atomically(file, f"{name}-{secrets.token_hex(4)}\n".encode())
        return file.read_text(encoding="utf-8").strip()

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Writes one line, then gives its numbers to the trackers (lists as `name/0`, ...)."""
        if self._writer is None:
            return
        self._writer.log(metrics, step)
        if numbers := dict(_numbers(metrics)):
            self._each("log", numbers, int(step))

    def text(self, name: str, text: str, step: int) -> None:
        """Gives a text to the trackers; the caller keeps its own file of it."""
        self._each("text", name, text, int(step))

    def rewind(self, step: int) -> None:
        """Forgets the metrics after `step` when training rolls back to it; events stay."""
        if self._writer is not None:
            self._writer.rewind(step)

    def finish(self, status: str = "finished") -> None:
        """Closes everything."""
        self._each("finish", status)
        self._trackers = {}
        if self._writer is not None:
            self._writer.close()

    def _each(self, method: str, *arguments: Any) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                getattr(tracker, method)(*arguments)
            # Some clients call sys.exit when nobody is logged in.
            except (Exception, SystemExit) as error:
                del self._trackers[name]
                warn(f"tracker {name} dropped: {_reason(error)}; metrics.jsonl goes on")


def parse_report_to(report_to: str | Iterable[str] | None) -> tuple[str, ...]:
    """Returns tracker names from `none`, `wandb`, `wandb,mlflow`, `all` or a list of names."""
    words = report_to.split(",") if isinstance(report_to, str) else list(report_to or ())
    names = [word.strip().lower() for word in words]
    if names == ["all"]:
        return NAMES
    names = [name for name in dict.fromkeys(names) if name not in ("", "none")]
    for name in names:
        if name not in NAMES:
            hint = nearest(name, NAMES)
            raise UserError(
                f"report_to={name}: expected none, all or some of {', '.join(NAMES)}{hint}"
            )
    return tuple(names)


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # a line torn by a crash
            if isinstance(row, dict):
                rows.append(row)
    return rows


def _plain(value: Any) -> Any:
    """Turns scalars and arrays into JSON; NaN and infinities become their names."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(item) for item in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _numbers(metrics: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    for key, value in metrics.items():
        plain = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(plain, (bool, int, float)):
            yield key, float(plain)
        elif isinstance(plain, Sequence) and not isinstance(plain, str):
            yield from _numbers({f"{key}/{i}": item for i, item in enumerate(plain)})


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:200]}"
