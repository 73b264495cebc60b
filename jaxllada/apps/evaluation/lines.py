"""Lines of result tables from the record of a run, and remarks on how far they can be compared."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxllada.apps.evaluation.report import Run


class Line(NamedTuple):
    """One row of a table: a metric of a task, in percent where it is a share."""

    run: str
    task: str
    metric: str
    score: float
    stderr: float | None
    is_share: bool
    published: float | None
    harness: str
    """What computed `published` where that was not lm_eval."""
    documents: int
    is_limited: bool


def lines_of(run: Run, *, every: bool = False) -> list[Line]:
    """The published metric of a recipe, or all metrics of the tasks asked for; `every`: of all."""
    published = run["published"] or {}
    metric = published.get("metric", "")
    found = []
    for task, entry in run["results"].items():
        is_asked = task in run["shown"]
        if not (is_asked or every):
            continue
        named = metric in entry["metrics"]
        for key, value in entry["metrics"].items():
            is_main = is_asked and named and key == metric
            if named and not (is_main or every):
                continue
            scale = 100 if value["is_share"] else 1
            error = None if value["stderr"] is None else scale * value["stderr"]
            score = published.get("score") if is_main and len(run["shown"]) == 1 else None
            known = score, "" if score is None else _other_harness(published)
            counted = entry["documents"], entry["documents"] < entry["all_documents"]
            shown = scale * value["value"], error, value["is_share"]
            found.append(Line(run["name"], task, key, *shown, *known, *counted))
    return found


def _other_harness(published: Mapping[str, Any]) -> str:
    return "" if published["harness"] in ("lm_eval", "none") else published["harness"]


def _last(model: str) -> str:
    """The name of a model without where it lies."""
    return str(model).rstrip("/").rpartition("/")[2].lower()


def remarks(run: Run) -> list[str]:
    """Why the score of a run need not be the published one, a line each."""
    published = run["published"]
    found = []
    counted = [run["results"][task] for task in run["shown"]]
    short = [entry for entry in counted if entry["documents"] < entry["all_documents"]]
    if short:
        seen, total = (sum(e[key] for e in short) for key in ("documents", "all_documents"))
        found.append(f"{seen} of {total} documents")
    if published is None:
        return found
    if published["score"] is not None:
        if harness := _other_harness(published):
            found.append(f"published under another harness, {harness}")
        if _last(published["model"]) != _last(run["protocol"].get("model", "")):
            found.append(f"published for {published['model'] or 'another model'}")
    if published["note"]:
        found.append(published["note"])
    if published["changed"]:
        found.append(f"changed by you: {', '.join(published['changed'])}")
    missing = published["metric"] and not any(published["metric"] in e["metrics"] for e in counted)
    if missing:
        known = ", ".join(sorted({key for entry in counted for key in entry["metrics"]}))
        found.append(f"no metric {published['metric']}: there are {known or 'none'}")
    return found
