"""How a context and its continuations become tokens, as evaluation harnesses have it.

Blanks that end the context are moved to the continuations, and a continuation is what its tokens
add to those of the context: a tokenizer may join the two.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxllada.common.errors import UserError

if TYPE_CHECKING:
    from jaxllada.common.tokenizer import Tokenizer


class OptionTokens(NamedTuple):
    """Token ids of a context and of its continuations."""

    prompt: list[int]
    options: tuple[list[int], ...]
    moved: str
    """Blanks that begin every continuation instead of ending the context."""


def encode_options(
    context: str,
    continuations: Sequence[str],
    tokenizer: "Tokenizer",
    *,
    add_bos: bool = False,
    keeps_blanks: bool = False,
) -> OptionTokens:
    """Encodes a context once, and each continuation behind it.

    `keeps_blanks` leaves the end of the context as it is, for a chat template, which ends in line
    breaks that are part of it. Raises `UserError` where `add_bos` asks for a token there is not.
    """
    kept = context if keeps_blanks else context.rstrip()
    moved = context[len(kept) :]
    before = tokenizer.encode(kept)
    wholes = tokenizer.encode_batch([kept + moved + text for text in continuations])
    options = tuple(whole[len(before) :] for whole in wholes)
    return OptionTokens([*beginning(tokenizer, add_bos), *before], options, moved)


def beginning(tokenizer: "Tokenizer", add_bos: bool) -> list[int]:
    """The token that begins every text under `add_bos`; else none."""
    if not add_bos:
        return []
    if tokenizer.bos_id is None:
        raise UserError("add_bos=true: the tokenizer has no beginning-of-sequence token")
    return [tokenizer.bos_id]
