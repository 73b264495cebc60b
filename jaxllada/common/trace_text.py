"""Adds to a trace what a reader of it needs: the text, the settings, the model and the cost.

With it a trace file is complete: it is played back without the tokenizer.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from jaxllada.common.answers import Decoder, Piece, pieces, until_end
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.engine import Generation
from jaxllada.common.errors import UserError
from jaxllada.common.trace import NOT_COMMITTED, Trace
from jaxllada.common.version import __version__

END, MASK = "\N{END OF PROOF}", "\N{LIGHT SHADE}"
"""How an end token and a position that was never filled are written."""


@dataclass(frozen=True)
class Told:
    """One row of a trace as text."""

    prompt: str
    pieces: Sequence[tuple[str, int]]
    """Text and number of positions of each stretch of the answer; one that holds several tokens
    is part of a character in each of them."""
    end: int
    """Positions before the first end token, or up to the last one that was ever filled."""


def describe(
    generation: Generation,
    decoder: Decoder,
    settings: SamplingConfig,
    *,
    prompt: Sequence[int],
    model: str = "",
    seed: int = 0,
    **more: Any,
) -> Trace:
    """Returns the trace of one answer with everything a player shows.

    `prompt` are the tokens without padding, `more` is told as it is. `about` then holds `rows`
    (see `Told`), `settings` (keys of SamplingConfig that differ from their defaults),
    `model`, `seed`, `nfe`, `seconds` and `version`.
    """
    if settings.infill and decoder.mask_id in prompt:  # the answer begins at the first gap
        prompt = list(prompt)[: list(prompt).index(decoder.mask_id)]
    padding = generation.trace.prompt.shape[1] - len(prompt)
    trace = replace(generation.trace, prompt=generation.trace.prompt[:, padding:])
    tokens = trace.tokens[0].tolist()
    about = {
        "rows": [
            {
                "prompt": decoder.decode(prompt),
                "pieces": [list(piece) for piece in _pieces(tokens, decoder)],
                "end": min(len(until_end(tokens, decoder)), _reach(trace)),
            }
        ],
        "settings": changed(settings),
        "model": model,
        "seed": seed,
        "nfe": generation.nfe,
        "seconds": round(generation.seconds, 4),
        "version": __version__,
        **more,
    }
    return replace(trace, about=about)


def _reach(trace: Trace) -> int:
    """Positions up to the last committed one; a canvas that grows may stop before its limit."""
    places = np.flatnonzero(trace.order[0] != NOT_COMMITTED)
    return int(places[-1]) + 1 if len(places) else 0


def told(trace: Trace, row: int = 0) -> Told:
    """The text of one row; raises `UserError` for a trace that was saved without it."""
    rows = trace.about.get("rows")
    if not rows:
        raise UserError(
            "this trace holds no text; write it with sample --trace, or describe() in Python"
        )
    found = rows[row]
    return Told(found["prompt"], [(text, count) for text, count in found["pieces"]], found["end"])


def changed(settings: SamplingConfig) -> dict[str, Any]:
    """What a reader wants to know of the settings: sizes, and whatever is not the default."""
    always = ("steps", "gen_length", "block_length", "temperature")
    usual = asdict(SamplingConfig())
    values = asdict(settings) | {"eot_token_id": None}  # of the tokenizer, not a choice
    kept = {key: values[key] for key in always}
    return kept | {
        key: value if isinstance(value, (str, int, float, bool)) else str(value)
        for key, value in values.items()
        if key not in always and value != usual[key]
    }


def shown(told: Told, is_there: Sequence[bool], mask: str = MASK) -> list[Piece]:
    """The text of one frame up to the end of the finished answer.

    `is_there` says which positions are committed. A character whose other half is still open is
    shown as U+FFFD.
    """
    found: list[Piece] = []
    first = 0
    for text, count in told.pieces:
        places = range(first, first + count)
        first += count
        if places.start >= told.end:
            break
        if all(is_there[i] for i in places):
            found.append(Piece(text, tuple(places), False))
            continue
        for i in places:
            found.append(Piece("\ufffd" if is_there[i] else mask, (i,), not is_there[i]))
    return found


def _pieces(tokens: Sequence[int], decoder: Decoder) -> list[tuple[str, int]]:
    """Splits an answer into text and positions; end tokens become one sign each."""
    found: list[tuple[str, int]] = []
    first = 0
    for place, token in enumerate(tokens):
        if token in (decoder.eos_id, decoder.eot_id):
            found += _texts(tokens[first:place], decoder)
            found.append((END, 1))
            first = place + 1
    return found + _texts(tokens[first:], decoder)


def _texts(tokens: Sequence[int], decoder: Decoder) -> list[tuple[str, int]]:
    return [(piece.text, len(piece.positions)) for piece in pieces(tokens, decoder, MASK)]
