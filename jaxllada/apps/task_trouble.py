"""Turns what goes wrong while a task is made into one line that names task and data."""

import contextlib
from collections.abc import Iterator

from jaxllada.apps.task_sources import TaskSource
from jaxllada.common.errors import UserError


@contextlib.contextmanager
def explained(task: str, source: TaskSource) -> Iterator[None]:
    """Raises `UserError` for data that the task's code cannot use, and for a missing package."""
    source.where, source.columns = "", []
    try:
        yield
    except UserError:
        raise
    except (ImportError, AssertionError) as error:
        if source.where and not isinstance(error, ImportError):
            raise _of_data(task, source, error) from error
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"tasks: {task} needs a package that is missing: {reason}") from error
    except Exception as error:  # definitions hold code of their own, which raises what it likes
        if not source.where:
            raise
        raise _of_data(task, source, error) from error


def _of_data(task: str, source: TaskSource, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    columns = f"; its columns are {', '.join(source.columns)}" if source.columns else ""
    kind = type(error).__name__
    return UserError(f"tasks: {task} cannot be made from {source.where}: {kind}: {reason}{columns}")
