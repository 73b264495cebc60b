"""Draws evaluations beside the published scores, and the speed of sampling where there is any."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxllada.apps.evaluation.beside import Evaluation, Row, rows_of
from jaxllada.common.errors import UserError

_PUBLISHED = "#6b7280"


def plot(evaluations: Sequence[Evaluation], out: Path) -> None:
    """Writes the picture; a row for each share, in percent.

    Raises `UserError` where no folder has one, ModuleNotFoundError without matplotlib.
    """
    import matplotlib

    from jaxllada.common.figures import STYLE, save_figure

    rows = [
        row for row in rows_of(evaluations) if any(line and line.is_share for line in row.lines)
    ]
    if not rows:
        raise UserError(f"out={out}: no score in percent to draw")
    with matplotlib.rc_context(STYLE):
        save_figure(_figure(rows, evaluations), out)


def _figure(rows: Sequence[Row], evaluations: Sequence[Evaluation]) -> Any:
    from matplotlib.figure import Figure

    speeds = _speeds(rows, evaluations)
    height = 1.5 + len(rows) * (0.34 + 0.13 * len(evaluations))
    size = (10.5 if speeds else 8, height)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)  # pyright: ignore
    widths = [2.4, 1] if speeds else [1]
    axes = figure.subplots(1, len(widths), width_ratios=widths, sharey=True, squeeze=False)[0]
    _draw_scores(axes[0], rows, evaluations)
    if speeds:
        _draw_speeds(axes[1], speeds, evaluations)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    return figure


def _place(row: int, one: int, count: int) -> float:
    """Height of a mark: folders of one row stand below each other."""
    return row + (one - (count - 1) / 2) * min(0.26, 0.7 / count)


def _draw_scores(axes: Any, rows: Sequence[Row], evaluations: Sequence[Evaluation]) -> None:
    from jaxllada.common.figures import COLORS

    count = len(evaluations)
    for one, evaluation in enumerate(evaluations):
        lines = [(row.lines[one], y) for y, row in enumerate(rows)]
        found = [(line, _place(y, one, count)) for line, y in lines if line is not None]
        axes.errorbar(
            [line.score for line, _ in found], [y for _, y in found],
            xerr=[line.stderr or 0 for line, _ in found], linestyle="", marker="o", markersize=6,
            color=COLORS[one % len(COLORS)], markeredgecolor="white", markeredgewidth=0.7,
            elinewidth=1.6, capsize=2.5, label=evaluation.label, zorder=3,
        )  # fmt: skip
    _draw_published(axes, rows)
    tasks = {row.run: {one.task for one in rows if one.run == row.run} for row in rows}
    names = [f"{row.run}: {row.task}" if tasks[row.run] != {row.task} else row.run for row in rows]
    metrics = [row.metric.removesuffix(",none") for row in rows]
    axes.set_yticks(range(len(rows)), [f"{a}\n{b}" for a, b in zip(names, metrics, strict=True)])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    for edge in range(1, len(rows)):
        axes.axhline(edge - 0.5, color="#eceef1", linewidth=0.8)
    axes.set_xlabel("percent, with standard error")
    axes.set_title("Scores")
    axes.margins(x=0.06)
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, -0.9), min(high, 100.9))  # no ticks where no share can be


def _draw_published(axes: Any, rows: Sequence[Row]) -> None:
    """A line across each row; dashed where another harness computed the score."""
    for kind in dict.fromkeys(row.harness for row in rows):
        known = [
            (row.published, y)
            for y, row in enumerate(rows)
            if row.published is not None and row.harness == kind
        ]
        if not known:
            continue
        axes.vlines(
            [score for score, _ in known], [y - 0.36 for _, y in known],
            [y + 0.36 for _, y in known], color=_PUBLISHED, linewidth=1.8, zorder=2,
            linestyle=(0, (3, 1.5)) if kind else "-",
            label=f"published ({kind})" if kind else "published",
        )  # fmt: skip


def _speeds(rows: Sequence[Row], evaluations: Sequence[Evaluation]) -> list[list[float | None]]:
    """Response tokens per second by folder and row, in the first row of a run; empty without."""
    first = [row.run not in [above.run for above in rows[:y]] for y, row in enumerate(rows)]
    table = []
    for evaluation in evaluations:
        rates = {run["name"]: run["cost"]["tokens_per_second"] for run in evaluation.runs}
        table.append(
            [rates.get(row.run) if one else None for row, one in zip(rows, first, strict=True)]
        )
    return table if any(rate for line in table for rate in line) else []


def _draw_speeds(
    axes: Any, speeds: Sequence[Sequence[float | None]], evaluations: Sequence[Evaluation]
) -> None:
    from jaxllada.common.figures import COLORS

    count = len(evaluations)
    for one, rates in enumerate(speeds):
        found = [(rate, _place(y, one, count)) for y, rate in enumerate(rates) if rate is not None]
        bars = axes.barh(
            [y for _, y in found], [rate for rate, _ in found], height=min(0.22, 0.6 / count),
            color=COLORS[one % len(COLORS)],
        )  # fmt: skip
        axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=8, color="#6b7280")
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("response tokens per second")
    axes.set_title("Speed of sampling")
    axes.set_xlim(0, 1.22 * max(rate for rates in speeds for rate in rates if rate))
