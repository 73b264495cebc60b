"""Checks of single values, each with a message that names the key."""

import math
import operator
from collections.abc import Iterable
from typing import Any

from jaxllada.common.errors import UserError, nearest


def integer(name: str, value: Any) -> int:
    """Returns a whole number; raises `UserError` for anything else, bool included."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise UserError(f"{name}={value!r} must be a whole number") from None


def non_negative(name: str, value: Any) -> None:
    """Raises `UserError` unless the value is a finite number, 0 or larger."""
    try:
        valid = math.isfinite(value) and value >= 0
    except TypeError:
        valid = False
    if not valid:
        raise UserError(f"{name}={value!r} must be a finite number, 0 or larger")


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """Token ids as a tuple; raises `UserError` for anything else."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise UserError(f"{name}={value!r} must be a list of token ids")
    ids = tuple(integer(name, token) for token in value)
    if any(token < 0 for token in ids):
        raise UserError(f"{name}={list(ids)} must hold token ids, 0 or larger")
    return ids


def one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    """Raises `UserError` with the nearest known word unless the value is one of them."""
    if value not in known:
        hint = nearest(str(value), known) or f"; choose from {', '.join(known)}"
        raise UserError(f"{name}={value!r} is unknown{hint}")


def divisors(length: int) -> str:
    """The larger divisors of a length, as a hint."""
    known = [n for n in range(length, 0, -1) if length % n == 0]
    return " or ".join(str(n) for n in known[:4])
