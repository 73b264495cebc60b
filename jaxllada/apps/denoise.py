"""Plays back how an answer was denoised: masks fill in, coloured by the model's confidence."""

import time
from collections.abc import Sequence

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from jaxllada.common.answers import Decoder, pieces, until_end
from jaxllada.common.trace import Trace

MASK = "░"
PLAIN_MASK = "_"
PLAIN_FRAMES = 5
COLOURS = ((0.3, "red"), (0.7, "dark_orange"), (float("inf"), "green"))
"""Upper bounds of confidence, as in the demonstration of the release."""


def play(
    trace: Trace,
    decoder: Decoder,
    *,
    console: Console | None = None,
    seconds: float = 6.0,
    title: str = "",
) -> None:
    """Shows the first row of a trace, in about `seconds`.

    Outside a terminal, a few frames are printed as plain text.
    """
    console = console or Console(highlight=False)
    if not console.is_terminal:
        _print_frames(trace, decoder, console, title)
        return
    steps = trace.num_steps
    with Live(console=console, auto_refresh=False) as live:
        for step in range(steps + 1):
            header = Text(f"{title}step {step}/{steps}", style="dim")
            live.update(Group(header, render(trace, decoder, step)), refresh=True)
            if step < steps:
                time.sleep(seconds / max(1, steps))


def render(trace: Trace, decoder: Decoder, step: int) -> Text:
    """The answer after `step` steps: masks grey, tokens coloured, the newest underlined."""
    tokens = _shown(trace, decoder, step)
    text = Text()
    for piece in pieces(tokens, decoder, MASK):
        if piece.is_mask:
            text.append(piece.text, "grey50")
            continue
        places = list(piece.positions)
        style = _colour(float(trace.confidence[0, places].min()))
        if (trace.order[0, places] == step - 1).any():
            style += " underline"
        text.append(piece.text, style)
    return text


def _print_frames(trace: Trace, decoder: Decoder, console: Console, title: str) -> None:
    steps = trace.num_steps
    for step in np.unique(np.linspace(0, steps, PLAIN_FRAMES).round().astype(int)).tolist():
        shown = pieces(_shown(trace, decoder, step), decoder, PLAIN_MASK)
        text = "".join(piece.text for piece in shown)
        console.print(f"{title}step {step}/{steps}", markup=False)
        console.print(text, markup=False, soft_wrap=True)


def _shown(trace: Trace, decoder: Decoder, step: int) -> Sequence[int]:
    """One frame, without what comes after the end of the finished answer."""
    length = len(until_end(trace.tokens[0].tolist(), decoder))
    return trace.frame(step)[0, :length].tolist()


def _colour(confidence: float) -> str:
    return next(colour for bound, colour in COLOURS if confidence < bound)
