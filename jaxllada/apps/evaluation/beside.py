"""Evaluations side by side: scores, differences on the same documents, and what was set otherwise.

Two runs that answered the same documents share most of their error. The standard error of their
difference is therefore taken over the differences of documents, where both left samples.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxllada.apps.evaluation.files import read_runs, read_scores
from jaxllada.apps.evaluation.lines import Line, lines_of
from jaxllada.apps.evaluation.report import Run
from jaxllada.apps.evaluation.tables import (
    flat,
    number,
    plain_table,
    published_cell,
    score_cell,
    settings,
    where,
)


class Evaluation(NamedTuple):
    """One folder and how it is called in tables."""

    label: str
    folder: Path
    runs: list[Run]


class Row(NamedTuple):
    """One metric of one task of one run, in every folder; None where a folder has none."""

    run: str
    task: str
    metric: str
    published: float | None
    harness: str
    lines: list[Line | None]


def read_all(names: Sequence[str]) -> list[Evaluation]:
    """Reads folders, labelled by their names, by whole paths where names are shared."""
    folders = [Path(name) for name in names]
    own = [(folder if folder.is_dir() else folder.parent).resolve().name for folder in folders]
    return [
        Evaluation(label if own.count(label) == 1 else name, folder, read_runs(folder))
        for label, name, folder in zip(own, names, folders, strict=True)
    ]


def rows_of(evaluations: Sequence[Evaluation]) -> list[Row]:
    """All lines of the tables, in the order of the first folder that has them."""
    found: dict[tuple[str, str, str], Row] = {}
    for place, evaluation in enumerate(evaluations):
        for line in (line for run in evaluation.runs for line in lines_of(run)):
            key = (line.run, line.task, line.metric)
            empty: list[Line | None] = [None] * len(evaluations)
            row = found.setdefault(key, Row(*key, line.published, line.harness, empty))
            row.lines[place] = line
    return list(found.values())


def beside(evaluations: Sequence[Evaluation]) -> str:
    """The tables: scores, differences to the first folder, speeds, and what was set otherwise."""
    labels = [evaluation.label for evaluation in evaluations]
    heads = ["run", "task", "metric", "published", labels[0]]
    for label in labels[1:]:
        heads += [label, f"{label} - {labels[0]}"]
    table = [heads]
    for row in rows_of(evaluations):
        cells = [row.run, row.task, row.metric, published_cell(row.published, row.harness)]
        for place, line in enumerate(row.lines):
            cells.append("" if line is None else score_cell(line))
            if place:
                cells.append(_difference(evaluations[0], evaluations[place], row, place))
        table.append(cells)
    parts = [plain_table(table, left=3), _rates(evaluations), _otherwise(evaluations)]
    return "\n\n".join(part for part in parts if part)


def _difference(first: Evaluation, other: Evaluation, row: Row, place: int) -> str:
    ours, theirs = row.lines[0], row.lines[place]
    if ours is None or theirs is None:
        return ""
    error = difference_error(first, other, row)
    if error is None and None not in (ours.stderr, theirs.stderr):
        error = math.hypot(ours.stderr or 0, theirs.stderr or 0)
    about = "" if error is None else f" \u00b1 {number(error, ours.is_share)}"
    change = theirs.score - ours.score
    return f"{'+' if change >= 0 else '-'}{number(abs(change), ours.is_share)}{about}"


def difference_error(first: Evaluation, other: Evaluation, row: Row) -> float | None:
    """Standard error of the difference in the unit of the table, over differences of documents.

    None where the folders did not ask the same documents the same, or left no samples. Documents
    count alike, as in groups that weigh tasks by their size.
    """
    entries = [_run(one, row.run)["results"][row.task] for one in (first, other)]
    if entries[0]["prompts"] != entries[1]["prompts"]:
        return None
    leaves = entries[0].get("subtasks", [row.task])
    differences: list[float] = []
    for leaf in leaves:
        a, b = (read_scores(one.folder, row.run, leaf, row.metric) for one in (first, other))
        if a is None or b is None or a.keys() != b.keys():
            return None
        differences += [b[document] - a[document] for document in a]
    if len(differences) < 2:
        return None
    scale = 100 if entries[0]["metrics"][row.metric]["is_share"] else 1
    return float(scale * np.std(differences, ddof=1) / math.sqrt(len(differences)))


def _run(evaluation: Evaluation, name: str) -> Run:
    return next(run for run in evaluation.runs if run["name"] == name)


def _rates(evaluations: Sequence[Evaluation]) -> str:
    """Response tokens per second, and per model call of an answer, where anything was sampled."""
    names = list(dict.fromkeys(run["name"] for one in evaluations for run in one.runs))
    table = [["response tokens/s (per NFE)", *(one.label for one in evaluations)]]
    for name in names:
        cells = [name]
        for one in evaluations:
            cost = next((run["cost"] for run in one.runs if run["name"] == name), {})
            rate, each = cost.get("tokens_per_second"), cost.get("tokens_per_call") or 0
            cells.append("" if rate is None else f"{rate:.1f} ({each:.2f})")
        if any(cells[1:]):
            table.append(cells)
    return plain_table(table, left=1) if len(table) > 1 else ""


def _otherwise(evaluations: Sequence[Evaluation]) -> str:
    """Keys that are not the same in all folders, with the runs where; prompts of tasks, too."""
    shared = [run["name"] for run in evaluations[0].runs]
    for one in evaluations[1:]:
        shared = [name for name in shared if name in [run["name"] for run in one.runs]]
    found: dict[str, list[str]] = {}
    for name in shared if len(evaluations) > 1 else ():
        facts = [_facts(_run(one, name)) for one in evaluations]
        for key in dict.fromkeys(key for one in facts for key in one):
            values = [str(one.get(key, "-")) for one in facts]
            if len(set(values)) > 1:
                found.setdefault(f"{key}: {' | '.join(values)}", []).append(name)
    lines = [f"  {said}{where(names, shared)}" for said, names in found.items()]
    return "\n".join(["otherwise set:", *lines]) if lines else ""


def _facts(run: Run) -> dict[str, object]:
    facts = flat(settings(run)) | flat(run["environment"])
    for task, entry in run["results"].items():
        if "subtasks" not in entry:
            for key in ("version", "num_fewshot", "documents", "prompts"):
                facts[f"{key} of {task}"] = entry[key]
    return facts
