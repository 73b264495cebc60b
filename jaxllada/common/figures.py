"""How pictures look and how they are saved: colours, style and axes of every plot here.

matplotlib is imported where something is drawn.
"""

import os
from pathlib import Path
from typing import Any

COLORS = ("#2f6db3", "#d1603d", "#3c8d5a", "#8a5fb0", "#b58a1b", "#4aa3a8", "#a8456b", "#666666")
INK, FAINT = "#30343b", "#9aa0a8"
STYLE: dict[Any, Any] = {
    "font.size": 9.5, "axes.titlesize": 10, "axes.titlelocation": "left",
    "axes.titleweight": "bold", "axes.titlecolor": INK, "axes.labelcolor": INK,
    "axes.edgecolor": "#c5c9cf", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#eceef1", "grid.linewidth": 0.8,
    "xtick.color": INK, "ytick.color": INK, "xtick.major.size": 0, "ytick.major.size": 0,
    "legend.frameon": False, "figure.facecolor": "white", "savefig.facecolor": "white",
}  # fmt: skip


def cycle() -> tuple[str, ...]:
    """The colours over and over, for many lines."""
    return COLORS * 8


def steps_axis(axes: Any) -> None:
    """Counts optimiser steps below the picture."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _count(value)))


def tokens_axis(axes: Any, per_step: float) -> None:
    """Counts tokens above the picture, `per_step` in each step."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    above = axes.secondary_xaxis(
        "top", functions=(lambda step: step * per_step, lambda tokens: tokens / per_step)
    )
    above.set_xlabel("tokens", color="#6b7280", labelpad=4)
    above.xaxis.set_major_locator(MaxNLocator(nbins=6))
    above.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _count(value)))
    above.spines["top"].set_visible(False)
    above.tick_params(length=0, colors="#6b7280")


def _count(value: float) -> str:
    """1500 -> 1.5k, 2e9 -> 2B."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def save_figure(figure: Any, path: Path) -> None:
    """Writes a picture in the format of its suffix; it replaces `path` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
