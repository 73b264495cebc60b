"""What a run learnt, as a table: its bound before and after, beside what no training gives."""

import json
from pathlib import Path
from typing import Any

_BASELINES = {
    "uniform_bound": "guessing evenly, ln V",
    "unigram_bound": "knowing how often each token occurs",
}


def summary(metrics: str | Path) -> str:
    """Returns the table of a run's `metrics.jsonl`; empty for a run that was never evaluated.

    All numbers are nats per token on the same validation rows. The model's are upper bounds
    (LLaDA, arXiv:2502.09992v3, equation 3) under the same noise; `+-` is one standard error.
    """
    lines = Path(metrics).read_text(encoding="utf-8").splitlines()
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    measured = [record for record in records if isinstance(record.get("eval_bound"), float)]
    if not measured:
        return ""
    rows: list[tuple[str, float, str]] = []
    for key, name in _BASELINES.items():
        known = [record[key] for record in records if key in record]
        if known:
            rows.append((name, known[-1], ""))
    first, last = measured[0], measured[-1]
    if first["step"] == 0:
        # Only answers have classes of tokens: that model had been trained before.
        is_tuned = any("content_nll" in record for record in records)
        state = "before" if is_tuned else "untrained"
        rows.append((f"this model, {state}", first["eval_bound"], _error(first)))
    if last["step"] > 0:
        name = f"this model, after {last['step']:,} steps"
        rows.append((name, last["eval_bound"], _error(last)))
    width = max(len(name) for name, _, _ in rows)
    table = [f"{'validation text':<{width}}  nats/token"]
    table += [f"{name:<{width}}  {value:10.3f}  {error}".rstrip() for name, value, error in rows]
    unigram = [value for name, value, _ in rows if name == _BASELINES["unigram_bound"]]
    if unigram and last["step"] > 0:
        gap = unigram[0] - last["eval_bound"]
        side = "below" if gap >= 0 else "ABOVE"
        table.append(f"{abs(gap):.2f} nats/token {side} the token frequencies")
    return "\n".join(table)


def _error(record: dict[str, Any]) -> str:
    error = record.get("eval_standard_error")
    return f"+- {error:.3f}" if isinstance(error, float) else ""
