"""Scores of evaluations as tables: for the terminal, and as Markdown with all that was set.

Shares are percent, errors are standard errors, `published` stands beside where a recipe has it.
"""

import json
from collections.abc import Sequence
from typing import Any

from jaxllada.apps.evaluation.lines import Line, lines_of, remarks
from jaxllada.apps.evaluation.report import Run

HEADS = ("run", "task", "metric", "score", "published", "difference", "documents")
COSTS = (
    "run", "answers", "tokens/answer", "NFE/answer", "tokens/NFE", "tokens/s", "canvases", "kept",
    "wall s",
)  # fmt: skip
_LEFT = 3
"""Columns of words; those behind hold numbers and stand to the right."""


def terminal(runs: Sequence[Run]) -> str:
    """Scores beside the published ones, remarks, then what they cost."""
    lines = [line for run in runs for line in lines_of(run)]
    parts = [plain_table([HEADS, *map(_cells, lines)], left=_LEFT)]
    said: dict[str, list[str]] = {}
    for run in runs:
        for remark in remarks(run):
            said.setdefault(remark, []).append(run["name"])
    if said:
        names = [run["name"] for run in runs]
        parts.append("\n".join(f"{one}{where(some, names)}" for one, some in said.items()))
    if any(run["cost"]["requests"] for run in runs):
        parts.append(plain_table([COSTS, *map(_costs, runs)], left=1))
    return "\n\n".join(parts)


def where(names: Sequence[str], everyone: Sequence[str]) -> str:
    """Which of several runs something is said of, in brackets; nothing for all of them."""
    if len(names) == len(everyone):
        return ""
    shown = list(names) if len(names) < 4 else [*names[:2], f"{len(names) - 2} more"]
    return f" ({', '.join(shown)})"


def markdown(runs: Sequence[Run]) -> str:
    """The same for a file, then every run in full: subtasks, settings, environment, source."""
    lines = [line for run in runs for line in lines_of(run)]
    parts = ["# Results", markdown_table([HEADS, *map(_cells, lines)], left=_LEFT)]
    parts.append(markdown_table([COSTS, *map(_costs, runs)], left=1))
    parts += [_in_full(run) for run in runs]
    return "\n\n".join(parts) + "\n"


def _cells(line: Line) -> tuple[str, ...]:
    published = published_cell(line.published, line.harness)
    difference = "" if line.published is None else f"{line.score - line.published:+.1f}"
    documents = f"{line.documents}*" if line.is_limited else str(line.documents)
    score = score_cell(line)
    return (line.run, line.task, line.metric, score, published, difference, documents)


def published_cell(score: float | None, harness: str) -> str:
    """The published score, with the harness where it was another."""
    if score is None:
        return ""
    return f"{score:.1f} ({harness})" if harness else f"{score:.1f}"


def score_cell(line: Line) -> str:
    """`69.4 +- 1.3`, with the sign."""
    score = number(line.score, line.is_share)
    return score if line.stderr is None else f"{score} \u00b1 {number(line.stderr, line.is_share)}"


def number(value: float, is_share: bool) -> str:
    """One decimal for percent, four digits for what may have any size."""
    return f"{value:.1f}" if is_share else f"{value:.4g}"


def _costs(run: Run) -> tuple[str, ...]:
    """Tokens are those of responses before their end; NFE counts model calls for every answer."""
    cost = run["cost"]
    answers, per_call, rate = (
        cost[key] for key in ("answers", "tokens_per_call", "tokens_per_second")
    )
    return (
        run["name"],
        str(answers or ""),
        f"{cost['response_tokens'] / answers:.1f}" if answers else "",
        f"{cost['answer_calls'] / answers:.1f}" if answers else "",
        "" if per_call is None else f"{per_call:.2f}",
        "" if rate is None else f"{rate:.1f}",
        str(cost["canvases"] or ""),
        f"{cost['kept']} of {cost['requests']}",
        f"{cost['wall_seconds']:.1f}",
    )


def _in_full(run: Run) -> str:
    parts = [f"## {run['name']}"]
    if found := remarks(run):
        parts.append("\n".join(f"- {remark}" for remark in found))
    every = lines_of(run, every=True)
    if len(every) > len(lines_of(run)):
        rows = [(one.task, one.metric, _cells(one)[3], _cells(one)[6]) for one in every]
        parts.append(markdown_table([("task", "metric", "score", "documents"), *rows], left=2))
    tasks = [
        (task, str(entry["version"]), str(entry["num_fewshot"]), entry["prompts"])
        for task, entry in run["results"].items()
    ]
    parts.append(
        markdown_table([("task", "version", "examples", "prompts (hash)"), *tasks], left=1)
    )
    facts = flat({"published": run["published"] or {}}) | flat(settings(run))
    facts |= flat({"environment": run["environment"]})
    said = {key: value for key, value in facts.items() if value not in (None, "", (), [])}
    rows = [(key, _shown(value)) for key, value in said.items()]
    parts.append(markdown_table([("key", "value"), *rows], left=2))
    return "\n\n".join(parts)


def settings(run: Run) -> dict[str, Any]:
    """The protocol of a run, with what all of its tasks are sampled by said once."""
    protocol = dict(run["protocol"])
    by_task = protocol.pop("sampling", None) or {}
    each = list(by_task.values())
    if each and all(one == each[0] for one in each):
        return protocol | {"sampling": each[0]}
    return protocol | {f"sampling of {task}": one for task, one in by_task.items()}


def flat(values: Any, above: str = "") -> dict[str, Any]:
    """Nested mappings as one, `sampling.steps`."""
    if not isinstance(values, dict):
        return {above: values}
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{above}.{key}" if above else str(key))
    return found


def _shown(value: Any) -> str:
    """Text as it is where it is one line, everything else as JSON."""
    if isinstance(value, str) and value.isprintable():
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def plain_table(rows: Sequence[Sequence[str]], *, left: int) -> str:
    """Columns under their heads; the first `left` stand to the left. Empty columns are left out."""
    columns = [i for i in range(len(rows[0])) if i == 0 or any(row[i] for row in rows[1:])]
    widths = {i: max(len(row[i]) for row in rows) for i in columns}
    lines = []
    for row in rows:
        cells = [row[i].ljust(widths[i]) if i < left else row[i].rjust(widths[i]) for i in columns]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(rows: Sequence[Sequence[str]], *, left: int) -> str:
    """The same as Markdown."""
    columns = [i for i in range(len(rows[0])) if i == 0 or any(row[i] for row in rows[1:])]
    cells = [[row[i].replace("|", "\\|") for i in columns] for row in rows]
    rule = ["---" if i < left else "---:" for i in columns]
    return "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], rule, *cells[1:]])
