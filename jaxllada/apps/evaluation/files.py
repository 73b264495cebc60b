"""What an evaluation leaves in its folder: results.json, results.md, and samples of every task.

    results.json            {"format": 1, "runs": [...]}: records of `apps.eval_report`, by name
    results.md              the same as tables
    samples/RUN/TASK.jsonl  one line a document: prompt, answers, what was read of them, scores

A run of the same name replaces the one before; others stay, so that recipes may be evaluated one
after another into one folder.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxllada.apps.evaluation.report import Run, Samples
from jaxllada.apps.evaluation.tables import markdown
from jaxllada.common.errors import UserError
from jaxllada.common.manifest import write_atomically

FORMAT = 1
RESULTS, TABLES, SAMPLES = "results.json", "results.md", "samples"


def write_run(folder: Path, run: Run, samples: Samples) -> None:
    """Adds a run to the folder, its samples first: what results.json names is there."""
    for task, rows in samples.items():
        path = samples_file(folder, run["name"], task)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row, ensure_ascii=False, default=_plain) for row in documents(rows)]
        write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
    folder.mkdir(parents=True, exist_ok=True)
    runs = read_runs(folder) if (folder / RESULTS).exists() else []
    if run["name"] in (names := [one["name"] for one in runs]):
        runs[names.index(run["name"])] = run
    else:
        runs.append(run)
    content = {"format": FORMAT, "runs": runs}
    text = json.dumps(content, indent=1, ensure_ascii=False, default=_plain)
    write_atomically(folder / RESULTS, text.encode())
    write_atomically(folder / TABLES, markdown(runs).encode())


def read_runs(folder: Path) -> list[Run]:
    """The runs of a folder, or of a results.json by its own name.

    Raises `UserError` where there is none, or one of another program or a later version.
    """
    path = folder / RESULTS if folder.is_dir() else folder
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{folder} holds no {RESULTS} ({error.strerror}): name the output of an evaluation"
        ) from None
    except ValueError:
        raise UserError(f"{path} is not JSON: evaluate into another folder") from None
    known = content.get("format") if isinstance(content, dict) else None
    if known != FORMAT:
        raise UserError(
            f"{path}: format={known} is not {FORMAT}: it was written by another program or a later"
            " version of this one"
        )
    return content["runs"]


def documents(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Joins the rows that lm_eval has of each document, one for every filter."""
    joined: dict[Any, dict[str, Any]] = {}
    for row in rows:
        rule = row["filter"]
        document = joined.setdefault(
            row["doc_id"],
            {
                "doc_id": row["doc_id"],
                "doc": row["doc"],
                "target": row["target"],
                "arguments": row["arguments"],
                "resps": row["resps"],
                "filtered_resps": {},
                "metrics": {},
                "prompt_hash": row.get("prompt_hash"),
            },
        )
        document["filtered_resps"][rule] = row["filtered_resps"]
        document["metrics"] |= {f"{metric},{rule}": row[metric] for metric in row["metrics"]}
    yield from joined.values()


def samples_file(folder: Path, run: str, task: str) -> Path:
    """Where the samples of a task are; names may hold slashes."""
    return folder / SAMPLES / _file_name(run) / f"{_file_name(task)}.jsonl"


def read_scores(folder: Path, run: str, task: str, metric: str) -> dict[Any, float] | None:
    """A metric of every document by its number; None where there are no samples of it."""
    path = samples_file(folder if folder.is_dir() else folder.parent, run, task)
    if not path.is_file():
        return None
    found = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            value = row["metrics"].get(metric)
            if not isinstance(value, (int, float)):
                return None
            found[row["doc_id"]] = float(value)
    return found


def _plain(value: Any) -> Any:
    """A NumPy scalar as the number it is; what JSON does not know as text."""
    return value.item() if isinstance(value, np.generic) else str(value)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w@.,+-]+", "_", name)[:120] or "_"
