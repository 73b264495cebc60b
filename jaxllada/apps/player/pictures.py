"""Draws traces with Pillow: an animation of every step, or a sheet of a few moments.

Fonts: DejaVu Sans Mono, which matplotlib brings along, and a Chinese, Japanese and Korean font of
the machine where a character needs one.
"""

import functools
import io
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxllada.apps.denoise import COLOURS
from jaxllada.common.trace import GIVEN, Trace
from jaxllada.common.trace_text import Piece, shown, told

SIZE = 16
LINE = 24
MARGIN = 18
PAPER, INK, FAINT, MASK, ACCENT = "#ffffff", "#23272e", "#6b7280", "#d5d9df", "#2f6db3"
TINTS = {"red": "#f8c9c4", "dark_orange": "#fbe0b0", "green": "#c4e8cd"}
GIVEN_TINT = "#d3e2f4"
MAX_FRAMES_PER_SECOND = 25
WIDE_FONTS = ("notosansmonocjk", "notosanscjk", "sourcehansans", "wqy", "pingfang", "hiragino",
              "msyh", "simhei", "uming", "ukai", "malgun", "meiryo", "gothic")  # fmt: skip
"""Beginnings of the names of font files that hold Chinese, Japanese or Korean characters."""


class Cell(NamedTuple):
    """A character with its place in the text, in columns and lines, and its piece."""

    column: int
    line: int
    character: str
    piece: Piece


def animation(
    traces: Mapping[str, Trace], seconds: float, *, title: str = "", columns: int = 72
) -> bytes:
    """Returns a GIF that shows every step in `seconds`, then rests a moment on the last one.

    Several traces lie below each other and end together. Runs of more than 25 steps a second leave
    some out.
    """
    steps = max(trace.num_steps for trace in traces.values())
    count = max(1, min(steps, int(seconds * MAX_FRAMES_PER_SECOND)))
    shares = np.arange(count + 1) / count
    images = [_moment(traces, share, title, columns) for share in shares]
    palette = _palette()
    frames = [image.quantize(palette=palette, dither=0) for image in images]
    # GIF counts hundredths of a second.
    duration = [max(20, round(1000 * seconds / count / 10) * 10)] * count + [2000]
    return _bytes(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=duration,
                  loop=0, optimize=True)  # fmt: skip


def sheet(traces: Mapping[str, Trace], frames: int, *, title: str = "", columns: int = 72) -> bytes:
    """Returns a PNG of `frames` moments from the first masks to the answer, below each other."""
    from PIL import Image

    shares = np.linspace(0, 1, frames) if frames > 1 else np.ones(1)
    images = [_moment(traces, s, title if i == 0 else "", columns) for i, s in enumerate(shares)]
    whole = Image.new("RGB", (images[0].width, sum(image.height for image in images)), PAPER)
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    return _bytes(whole, "PNG", optimize=True)


def _moment(traces: Mapping[str, Trace], share: float, title: str, columns: int) -> Any:
    """One picture: every trace after this share of its steps."""
    from PIL import Image, ImageDraw

    advance = _font("").getlength("x")
    cells = {
        name: lay_out(_pieces(trace, trace.num_steps), columns) for name, trace in traces.items()
    }
    lines = sum(2 + max((cell.line for cell in laid), default=0) for laid in cells.values())
    height = 2 * MARGIN + LINE * (lines + bool(title)) + LINE // 2 * (len(traces) - 1)
    image = Image.new("RGB", (round(2 * MARGIN + columns * advance), height), PAPER)
    pen = ImageDraw.Draw(image)
    top = MARGIN
    if title:
        pen.text((MARGIN, top), title, fill=INK, font=_font(title))
        top += LINE
    for name, trace in traces.items():
        step = round(share * trace.num_steps)
        label = f"step {step} of {trace.num_steps}"
        label = f"{name}: {label}" if len(traces) > 1 else label
        pen.text((MARGIN, top), label, fill=FAINT, font=_font(label))
        top += LINE
        _draw(pen, cells[name], trace, step, top, advance)
        top += LINE * (1 + max((cell.line for cell in cells[name]), default=0)) + LINE // 2
    return image


def _draw(
    pen: Any, cells: Sequence[Cell], trace: Trace, step: int, top: int, advance: float
) -> None:
    there = trace.is_there(step)[0]
    before: Piece | None = None
    for cell in cells:
        places = list(cell.piece.positions)
        width = advance * _width(cell.character)
        x, y = MARGIN + cell.column * advance, top + cell.line * LINE
        box = (x, y, x + width, y + LINE - 4)
        if not there[places].all():
            pen.rectangle((box[0] + 0.5, box[1] + 2, box[2] - 1, box[3] - 2), fill=MASK)
            continue
        sure = float(trace.confidence[0, places].min())
        tint = TINTS[next(name for bound, name in COLOURS if sure < bound)]
        is_given = (trace.order[0, places] == GIVEN).all()
        pen.rectangle(box, fill=GIVEN_TINT if is_given else tint)
        if trace.order[0, places].max() == step - 1:
            pen.rectangle((box[0], box[3], box[2], box[3] + 1.5), fill=ACCENT)
        if cell.piece is not before:  # a fine line between tokens
            pen.rectangle((x, y, x + 0.5, y + LINE - 4), fill=PAPER)
        before = cell.piece
        if cell.character.strip():
            pen.text((x, y - 1), cell.character, fill=INK, font=_font(cell.character))


def lay_out(pieces: Sequence[Piece], columns: int) -> list[Cell]:
    """Places the characters of the finished text, so that nothing moves while it appears."""
    cells: list[Cell] = []
    column = line = 0
    for piece in pieces:
        for character in piece.text.replace("\t", "    "):
            if character == "\n":
                column, line = 0, line + 1
                continue
            width = _width(character)
            if column + width > columns:
                column, line = 0, line + 1
            cells.append(Cell(column, line, character, piece))
            column += width
    return cells


def _pieces(trace: Trace, step: int) -> list[Piece]:
    return shown(told(trace), trace.is_there(step)[0])


def _width(character: str) -> int:
    """Columns of a character: Chinese ones take two, accents that combine none."""
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cc", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _font(text: str) -> Any:
    is_wide = any(_width(character) == 2 for character in text)
    return _wide_font() if is_wide else _plain_font()


@functools.cache
def _plain_font() -> Any:
    import matplotlib
    from PIL import ImageFont

    home = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(home / "DejaVuSansMono.ttf", SIZE)


@functools.cache
def _wide_font() -> Any:
    """A font of the machine with Chinese characters, else the plain one."""
    from matplotlib.font_manager import findSystemFonts
    from PIL import ImageFont

    files = {Path(path).stem.lower().replace("-", ""): path for path in findSystemFonts()}
    for start in WIDE_FONTS:
        for name in sorted(files):
            if name.startswith(start):
                return ImageFont.truetype(files[name], SIZE)
    return _plain_font()


def _palette() -> Any:
    """Every colour in use and its blends with the paper and the ink, as smooth letters need."""
    from PIL import Image, ImageColor

    colours = {}
    for ground in (PAPER, GIVEN_TINT, *TINTS.values()):
        for ink in (INK, FAINT):
            low, high = np.array(ImageColor.getrgb(ground)), np.array(ImageColor.getrgb(ink))
            for share in np.linspace(0, 1, 9):
                colours[tuple(np.rint(low + share * (high - low)).astype(int).tolist())] = None
    for colour in (MASK, ACCENT):
        colours[ImageColor.getrgb(colour)] = None
    image = Image.new("P", (1, 1))
    image.putpalette([value for colour in colours for value in colour])
    return image


def _bytes(image: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
