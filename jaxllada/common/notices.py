"""One-line notices on stderr that do not tear a progress bar."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from tqdm import tqdm


def notice(message: str) -> None:
    """Prints a line for the user, above a progress bar if one is on the screen."""
    tqdm.write(message, file=sys.stderr)


def warn(message: str) -> None:
    """Prints `warning: ...`: something went wrong that the run survives."""
    notice(f"warning: {message}")


@contextlib.contextmanager
def byte_progress(total: int, title: str) -> Iterator[Callable[[int], None]]:
    """Yields a function that counts bytes; shows a bar of `total` of them on a terminal."""
    hidden = not sys.stderr.isatty()
    with tqdm(
        desc=title, total=total, unit="B", unit_scale=True, dynamic_ncols=True, disable=hidden
    ) as bar:

        def count(size: int) -> None:
            bar.update(size)

        yield count
