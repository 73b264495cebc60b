"""One-line notices on stderr that do not tear a progress bar."""

import sys

from tqdm import tqdm


def notice(message: str) -> None:
    """Prints a line for the user, above a progress bar if one is on the screen."""
    tqdm.write(message, file=sys.stderr)


def warn(message: str) -> None:
    """Prints `warning: ...`: something went wrong that the run survives."""
    notice(f"warning: {message}")
