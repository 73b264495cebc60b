"""Draws metrics.jsonl: loss, validation bound and baselines, learning rate, loss by mask rate.

matplotlib is imported here alone, when something is drawn, and needs no display.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxllada.common.curves import Curve, Curves, read_curves, smooth
from jaxllada.common.figures import (
    COLORS,
    FAINT,
    INK,
    STYLE,
    cycle,
    save_figure,
    steps_axis,
    tokens_axis,
)


def plot_losses(
    metrics_path: str | os.PathLike[str], out_png: str | os.PathLike[str], *, title: str = ""
) -> None:
    """Draws one run. `metrics_path` is a run folder or its metrics.jsonl.

    Raises UserError when the file is missing or holds no losses, ModuleNotFoundError without
    matplotlib. The picture replaces `out_png` in one step.
    """
    plot_runs([read_curves(Path(metrics_path), title)], out_png)


def plot_runs(runs: Sequence[Curves], out_png: str | os.PathLike[str]) -> None:
    """Draws one run in detail, or several over each other."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = _figure(runs)
        save_figure(figure, Path(out_png))


def _figure(runs: Sequence[Curves]) -> Any:
    # A figure without pyplot has no global state and opens no window.
    from matplotlib.figure import Figure

    sides = [_draw_learning_rate] if any(len(r.learning_rate) for r in runs) else []
    if len(runs) == 1 and runs[0].by_rate:
        sides.append(_draw_by_rate)
    if len(runs) == 1 and runs[0].by_class:
        sides.append(_draw_by_class)
    size = (11 if sides else 8, 7.6 if len(sides) > 2 else 5.4)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.10, wspace=0.03)  # pyright: ignore
    grid = figure.add_gridspec(
        max(1, len(sides)), 2 if sides else 1, width_ratios=[2.1, 1] if sides else [1],
        height_ratios=[0.62, *[1] * (len(sides) - 1)] if len(sides) > 1 else None,
    )  # fmt: skip
    _draw_loss(figure.add_subplot(grid[:, 0]), runs)
    for row, draw in enumerate(sides):
        draw(figure.add_subplot(grid[row, 1]), runs)
    return figure


def _draw_loss(axes: Any, runs: Sequence[Curves]) -> None:
    only = len(runs) == 1
    for color, run in zip(cycle(), runs, strict=False):
        label = "train" if only else run.name
        _line(axes, run.loss, color, label=label, show_raw=True)
        bound_color = COLORS[1] if only else color
        if len(run.bound):
            errors = run.bound_error.values if len(run.bound_error) == len(run.bound) else None
            axes.errorbar(
                run.bound.steps, run.bound.values, yerr=errors, color=bound_color, marker="o",
                markersize=5, linewidth=1.2, linestyle="-" if only else "--", capsize=2,
                markeredgecolor="white", markeredgewidth=0.8, zorder=4,
                label="validation bound" if only else None,
            )  # fmt: skip
            if only:
                _annotate_last(axes, run.bound, bound_color)
    baselines = {name: value for run in runs for name, value in run.baselines.items()}
    low, high = _limits(runs, baselines)
    axes.set_ylim(low, high)
    axes.margins(x=0.02)
    for name, value in baselines.items():
        axes.axhline(value, color=FAINT, linewidth=1.1, linestyle=(0, (5, 4)), zorder=1)
        axes.annotate(
            f"{name} {value:.2f}", (0.995, value), xycoords=("axes fraction", "data"),
            xytext=(0, 3), textcoords="offset points", ha="right", color="#6b7280", fontsize=8.5,
        )  # fmt: skip
    if only:
        _mark_events(axes, runs[0])
    axes.set_title(f"{runs[0].name}: loss" if only else "Loss", pad=10)
    axes.set_ylabel("nats per token")
    steps_axis(axes)
    if only and runs[0].tokens_per_step:
        tokens_axis(axes, runs[0].tokens_per_step)
    if not only and any(len(run.bound) for run in runs):
        axes.plot([], [], color=INK, marker="o", markersize=5, linestyle="--", label="validation")
    columns = 4 if only else min(4, len(runs) + 1)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=columns)


def _draw_learning_rate(axes: Any, runs: Sequence[Curves]) -> None:
    from matplotlib.ticker import FuncFormatter

    for color, run in zip(cycle(), runs, strict=False):
        axes.plot(run.learning_rate.steps, run.learning_rate.values, color=color, linewidth=1.6)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.set_title("Learning rate")
    steps_axis(axes)


def _draw_by_rate(axes: Any, runs: Sequence[Curves]) -> None:
    from matplotlib import colormaps

    curves = runs[0].by_rate
    colors = colormaps["viridis"](np.linspace(0.95, 0.05, len(curves)))
    ends = []
    for i, (curve, color) in enumerate(zip(curves, colors, strict=True)):
        values = _line(axes, curve, color, width=1.4)
        known = np.flatnonzero(np.isfinite(values))
        if len(known) and i in (0, len(curves) - 1):
            low, high = i / len(curves), (i + 1) / len(curves)
            ends.append((curve.steps[known[-1]], values[known[-1]], f"t {low:g}-{high:g}", color))
    for x, y, text, color in ends:
        axes.annotate(
            text, (x, y), xytext=(4, 0), textcoords="offset points", va="center",
            color=np.asarray(color[:3]) * 0.8, fontsize=8.5, annotation_clip=False,
        )  # fmt: skip
    axes.margins(x=0.02)
    axes.set_title("Loss by mask rate t")
    axes.set_ylabel("nats per masked token")
    steps_axis(axes)


def _draw_by_class(axes: Any, runs: Sequence[Curves]) -> None:
    for color, (name, curve) in zip(cycle(), runs[0].by_class.items(), strict=False):
        _line(axes, curve, color, label=name, width=1.6)
    axes.margins(x=0.02)
    axes.set_ylim(bottom=0)
    axes.set_title("Loss by class of answer token")
    axes.set_ylabel("nats per masked token")
    steps_axis(axes)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.32), ncols=3, fontsize=8.5)


def _line(
    axes: Any, curve: Curve, color: Any, *, label: str = "", show_raw: bool = False,
    width: float = 2.0,
) -> np.ndarray:  # fmt: skip
    """Draws the smoothed curve, over the raw one where asked, and returns it."""
    reach = len(curve) // 25
    smoothed = smooth(curve.values, reach)
    if show_raw and reach:
        axes.plot(curve.steps, curve.values, color=color, alpha=0.22, linewidth=0.8, zorder=2)
    marker = "o" if len(curve) == 1 else None
    axes.plot(
        curve.steps, smoothed, color=color, linewidth=width, label=label or None, zorder=3,
        marker=marker, solid_capstyle="round",
    )  # fmt: skip
    return smoothed


def _limits(runs: Sequence[Curves], baselines: dict[str, float]) -> tuple[float, float]:
    """The range of what matters: a first spike may leave the picture, the rest may not."""
    parts = [np.asarray(list(baselines.values()))]
    for run in runs:
        values = run.loss.values[np.isfinite(run.loss.values)]
        tail = values[len(values) // 50 :]
        parts += [tail[tail <= np.quantile(tail, 0.99)] if len(tail) else tail]
        parts += [run.bound.values[np.isfinite(run.bound.values)], smooth(tail, len(tail) // 40)]
    everything = np.concatenate(parts)
    if not len(everything):
        return 0.0, 1.0
    low, high = float(everything.min()), float(everything.max())
    room = max(high - low, 0.1 * abs(high), 1e-3)
    return low - 0.06 * room, high + 0.08 * room


def _annotate_last(axes: Any, curve: Curve, color: str) -> None:
    known = np.flatnonzero(np.isfinite(curve.values))
    if len(known):
        x, y = curve.steps[known[-1]], curve.values[known[-1]]
        axes.annotate(
            f"{y:.3f}", (x, y), xytext=(8, 0), textcoords="offset points", va="center",
            color=color, fontweight="bold", fontsize=9.5, annotation_clip=False,
        )  # fmt: skip


def _mark_events(axes: Any, run: Curves) -> None:
    """Marks rollbacks, spikes and steps whose loss was not finite."""
    for step, event in run.events:
        if event in ("rollback", "loss_spike"):
            word = event.replace("_", " ")
            axes.axvline(step, color=COLORS[6], linewidth=1.0, alpha=0.8, zorder=1)
            axes.annotate(
                word, (step, 0.02), xycoords=("data", "axes fraction"), xytext=(3, 0),
                textcoords="offset points", color=COLORS[6], fontsize=8.5,
            )  # fmt: skip
    lost = run.loss.steps[~np.isfinite(run.loss.values)]
    if len(lost):
        axes.plot(
            lost, np.full(len(lost), 0.985), linestyle="", marker="x", color=COLORS[6],
            markersize=5, transform=axes.get_xaxis_transform(), label="not finite", zorder=5,
        )  # fmt: skip
