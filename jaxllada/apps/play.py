"""Plays a trace back in the terminal, or writes a page, an animation or a picture of it.

jaxllada play trace.npz
jaxllada play trace.npz --output trace.html
jaxllada play slow.npz fast.npz --output both.html
jaxllada play trace.npz --output trace.gif --seconds 8

Traces come from `sample --trace`, `chat --trace` and `tune`. The page is one file: it scrubs,
plays, colours tokens by confidence or order, compares two traces, and loads nothing from anywhere.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from jaxllada.common.errors import UserError
from jaxllada.common.trace import Trace

KINDS = (".html", ".gif", ".png")


@dataclass(frozen=True, kw_only=True)
class Config:
    traces: tuple[str, ...] = field(default=(), metadata={"positional": True})
    """One trace, or two to be compared."""
    output: str = ""
    """File to write, .html, .gif or .png; empty: play in the terminal."""
    row: int = 0
    """Which answer, where a trace holds several."""
    title: str = ""
    """Headline; the names of the files by default."""
    seconds: float = 6.0
    """Length of the animation, also in the terminal."""
    columns: int = 72
    """Characters per line of pictures and animations."""
    frames: int = 6
    """Moments a .png shows."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.traces) <= 2:
            raise UserError(f"{len(self.traces)} traces given: expected play TRACE [TRACE2]")
        if self.output and Path(self.output).suffix not in KINDS:
            raise UserError(f"output={self.output}: expected a name ending in {', '.join(KINDS)}")
        if self.output and not Path(self.output).absolute().parent.is_dir():
            raise UserError(f"output={self.output}: its folder does not exist")
        if not self.seconds > 0:
            raise UserError(f"seconds={self.seconds}: expected more than 0")
        for key, least in (("row", 0), ("columns", 20), ("frames", 1)):
            if getattr(self, key) < least:
                raise UserError(f"{key}={getattr(self, key)}: expected {least} or more")


def run(config: Config) -> int:
    """Reads every trace before anything is written or shown."""
    traces = {name: _row(path, config.row) for path, name in _names(config.traces)}
    if not config.output:
        from jaxllada.apps.denoise import play

        for name, trace in traces.items():
            title = f"{config.title or name}: " if len(traces) > 1 or config.title else ""
            play(trace, seconds=config.seconds, title=title)
        return 0
    from jaxllada.common.manifest import write_atomically

    out = Path(config.output)
    if out.suffix == ".html":
        from jaxllada.apps.player.page import player_page

        write_atomically(out, player_page(traces, title=config.title).encode())
    else:
        from jaxllada.apps.player import pictures

        look = {"title": config.title, "columns": config.columns}
        if out.suffix == ".gif":
            content = pictures.animation(traces, config.seconds, **look)
        else:
            content = pictures.sheet(traces, config.frames, **look)
        write_atomically(out, content)
    print(f"wrote {out}", file=sys.stderr)
    return 0


def _row(path: str, row: int) -> Trace:
    from jaxllada.common.trace_text import told

    trace = Trace.load(path)
    if row >= len(trace):
        raise UserError(f"row={row}: {path} holds {len(trace)} answers, counted from 0")
    trace = trace[row]
    try:
        told(trace)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return trace


def _names(paths: tuple[str, ...]) -> list[tuple[str, str]]:
    """Calls a trace by its file name, by its whole path where two share one."""
    stems = [Path(path).stem for path in paths]
    is_clear = len(set(stems)) == len(stems)
    names = stems if is_clear else [str(path) for path in paths]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return list(zip(paths, names, strict=True))
