"""The verb `inspect` (`jaxllada/apps/inspect.py`), which here knows orbax checkpoints as well."""

from pathlib import Path
from typing import Any

from jaxllada.apps import inspect as app
from jaxllada.apps.inspect import Config

__all__ = ["Config", "run"]


def run(config: Config) -> int:
    """Prints the sizes; returns 1 when weight files do not hold what the config asks for."""
    return app.run(config, _look)


def _look(path: Path, step: int | None) -> dict[str, Any] | None:
    from jaxllada.common.run.checkpoints import is_run_folder
    from jaxllada.common.weights.inspection import (
        inspect_arrays,
        inspect_weights,
        newest_checkpoint,
    )

    if (weights := inspect_weights(path, step)) is not None:
        return weights
    folder = newest_checkpoint(path, step) if is_run_folder(path) else path
    # The average of a run's weights first: it is what `load` takes.
    items = [item for item in ("ema", "params") if (folder / item / "_METADATA").is_file()]
    if not items:
        return None
    from jaxllada.orbax_arrays import open_arrays

    return inspect_arrays(path, step, open_arrays, items)
