"""Curves of one training run by several backends, and how far they are from the first."""

from pathlib import Path

import numpy as np


def draw(losses: dict[str, np.ndarray], limit: float, title: str, target: Path) -> None:
    """Draws losses over each other (thick below thin) and their relative differences."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), dpi=130, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    first, *others = losses
    steps = np.arange(1, len(losses[first]) + 1)
    styles = [("#b8c4d6", 6.0, "-"), ("#d1495b", 2.5, "-"), ("#1b1b1e", 1.2, ":")]
    for (name, curve), (color, width, line) in zip(losses.items(), styles, strict=False):
        above.plot(steps, curve, line, color=color, linewidth=width, label=name)
    above.set(ylabel="loss, nats per token", title=title)
    above.legend(frameon=False)
    for name, (color, _, _) in zip(others, styles[1:], strict=False):
        difference = np.abs(losses[name] / losses[first] - 1)
        below.semilogy(steps, np.maximum(difference, 1e-9), ".-", color=color, label=name)
    below.axhline(limit, color="#888888", linewidth=1, linestyle="--")
    below.text(1, limit * 1.3, f"allowed: {limit:g}", color="#666666", fontsize=8)
    below.set(xlabel="step", ylabel=f"relative difference to {first}", ylim=(5e-10, limit * 10))
    figure.savefig(target)
