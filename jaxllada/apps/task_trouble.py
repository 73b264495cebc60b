"""Turns what goes wrong while a task is made into one line that names task and data."""

import contextlib
from collections.abc import Iterator
from typing import Any

from jaxllada.common.errors import UserError


@contextlib.contextmanager
def explained(task: str, source: Any) -> Iterator[None]:
    """Raises `UserError` for a column that the task's code misses, and for a missing package."""
    from jinja2 import UndefinedError

    source.where = ""
    try:
        yield
    except UserError:
        raise
    except (KeyError, UndefinedError) as error:
        if not source.where:
            raise
        raise UserError(
            f"tasks: {task}: {source.where} lacks what the task reads: {error}"
        ) from error
    except ImportError as error:
        raise UserError(f"tasks: {task} needs a package that is missing: {error}") from error
