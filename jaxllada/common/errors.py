"""The one error a user's mistake raises, and the hint that comes with it."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input, told in one line: the key, its value and what would be right.

    The command line prints the message after `error: ` and exits with code 2; from Python it is an
    ordinary `ValueError`. It is raised before anything is compiled, downloaded or written.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the closest known word, or an empty string."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{match[0]}'?" if match else ""
