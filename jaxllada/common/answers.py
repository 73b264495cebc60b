"""Answer tokens as text: what is shown while masks are left, and where an answer ends."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol


class Decoder(Protocol):
    """What the terminal programs need of a tokenizer."""

    eos_id: int
    eot_id: int | None
    mask_id: int

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str: ...


class Piece(NamedTuple):
    """A stretch of text that some neighbouring positions stand for."""

    text: str
    positions: tuple[int, ...]
    is_mask: bool


def until_end(tokens: Sequence[int], decoder: Decoder) -> list[int]:
    """Cuts an answer at its first end token; one behind a mask counts too."""
    ends = {decoder.eos_id, decoder.eot_id}
    end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[:end])


def stops_at(texts: Sequence[str], decoder: Decoder) -> Callable[[Sequence[int]], bool]:
    """Returns whether tokens hold one of some texts: what an engine takes as `should_stop`.

    Special tokens are part of the text, and texts may begin and end inside tokens.
    """
    return lambda tokens: any(text in decoder.decode(tokens) for text in texts)


def cut_before(text: str, stops: Sequence[str]) -> str:
    """The part of a text in front of the first of some texts."""
    return text[: min([text.find(stop) for stop in stops if stop in text], default=len(text))]


def settled(tokens: Sequence[int], decoder: Decoder) -> list[int]:
    """The tokens before the first mask or end token: this much of the answer is final."""
    stops = {decoder.mask_id, decoder.eos_id, decoder.eot_id}
    end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    return list(tokens[:end])


def pieces(tokens: Sequence[int], decoder: Decoder, mask: str) -> list[Piece]:
    """Splits an answer into text position by position, with `mask` for what is still open.

    Tokens that only together form a character make one piece.
    """
    found: list[Piece] = []
    group: list[int] = []
    for position, token in enumerate(tokens):
        if token == decoder.mask_id:
            found += _text(tokens, group, decoder)
            group = []
            found.append(Piece(mask, (position,), True))
            continue
        group.append(position)
        # A byte-level token may hold part of a character, which decodes to U+FFFD on its own.
        if not decoder.decode([tokens[i] for i in group]).endswith("�"):
            found += _text(tokens, group, decoder)
            group = []
    return found + _text(tokens, group, decoder)


def _text(tokens: Sequence[int], group: Sequence[int], decoder: Decoder) -> list[Piece]:
    text = decoder.decode([tokens[i] for i in group]) if group else ""
    return [Piece(text, tuple(group), False)] if group else []
