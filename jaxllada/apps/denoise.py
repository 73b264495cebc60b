"""Plays back in the terminal how an answer was denoised, coloured by the model's confidence."""

import time

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from jaxllada.common.trace import GIVEN, Trace
from jaxllada.common.trace_text import MASK, shown, told

PLAIN_MASK = "_"
PLAIN_FRAMES = 5
COLOURS = ((0.3, "red"), (0.7, "dark_orange"), (float("inf"), "green"))
"""Upper bounds of confidence, as in the demonstration of the release."""


def play(
    trace: Trace,
    *,
    row: int = 0,
    console: Console | None = None,
    seconds: float = 6.0,
    title: str = "",
) -> None:
    """Shows one row of a described trace (`common/trace_text.py`), in about `seconds`.

    Outside a terminal, a few frames are printed as plain text.
    """
    console = console or Console(highlight=False)
    trace = trace[row]
    if not console.is_terminal:
        _print_frames(trace, console, title)
        return
    steps = trace.num_steps
    with Live(console=console, auto_refresh=False) as live:
        for step in range(steps + 1):
            header = Text(f"{title}step {step}/{steps}", style="dim")
            live.update(Group(header, render(trace, step)), refresh=True)
            if step < steps:
                time.sleep(seconds / max(1, steps))


def render(trace: Trace, step: int) -> Text:
    """The first row after `step` steps: masks grey, tokens coloured, the newest underlined, what
    was given with the prompt cyan."""
    text = Text()
    for piece in shown(told(trace), trace.is_there(step)[0], MASK):
        if piece.is_mask:
            text.append(piece.text, "grey50")
            continue
        places = list(piece.positions)
        if (trace.order[0, places] == GIVEN).all():
            text.append(piece.text, "cyan")
            continue
        style = _colour(float(trace.confidence[0, places].min()))
        if (trace.order[0, places] == step - 1).any():
            style += " underline"
        text.append(piece.text, style)
    return text


def _print_frames(trace: Trace, console: Console, title: str) -> None:
    steps = trace.num_steps
    for step in np.unique(np.linspace(0, steps, PLAIN_FRAMES).round().astype(int)).tolist():
        parts = shown(told(trace), trace.is_there(step)[0], PLAIN_MASK)
        console.print(f"{title}step {step}/{steps}", markup=False)
        console.print("".join(part.text for part in parts), markup=False, soft_wrap=True)


def _colour(confidence: float) -> str:
    return next(colour for bound, colour in COLOURS if confidence < bound)
