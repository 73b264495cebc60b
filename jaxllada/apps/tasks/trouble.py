"""Turns what goes wrong in a task's own code into one line that names task, data and row."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from jaxllada.common.errors import UserError


@contextlib.contextmanager
def making(task: str, data: Callable[[], str]) -> Iterator[None]:
    """Raises `UserError` where a task cannot be made: for its data, or a package that is missing.

    `data()` names its data and their columns, or is empty while none was asked for.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # definitions hold code of their own, which raises what it likes
        if isinstance(error, ImportError) or (isinstance(error, AssertionError) and not data()):
            raise UserError(
                f"tasks: {task} needs a package that is missing: {_line(error)}"
            ) from error
        if not data():
            raise
        raise UserError(
            f"tasks: {task} cannot be made from {data()}: {type(error).__name__}: {_line(error)}"
        ) from error


@contextlib.contextmanager
def asking(task: Any, name: str, data: str) -> Iterator[None]:
    """Raises `UserError` that names the first row that the task can make no request of."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        row, cause = _first_bad(task) or (None, error)
        at = "" if row is None else f", row {row}"
        raise UserError(
            f"tasks: {name}: {data}{at}: {type(cause).__name__}: {_line(cause)}"
        ) from error


def _first_bad(task: Any) -> tuple[int, Exception] | None:
    for row, doc in enumerate(task.eval_docs):
        try:
            task.doc_to_text(doc)
            task.doc_to_target(doc)
            if task.config.doc_to_choice is not None:
                task.doc_to_choice(doc)
        except Exception as error:
            return row, error
    return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
