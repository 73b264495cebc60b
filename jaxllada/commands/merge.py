"""The verb `merge` (`jaxllada/apps/merge.py`) with the sources and the model of JAX."""

from pathlib import Path
from typing import TYPE_CHECKING

from jaxllada.apps import merge as app
from jaxllada.apps.merge import Config

if TYPE_CHECKING:
    import numpy as np

    from jaxllada.common.weights.adapter import Adapter
    from jaxllada.common.weights.source import Source

__all__ = ["Config", "run"]
__doc__ = app.__doc__


def run(config: Config) -> int:
    """Writes the folder and tells what merging changed; returns 1 where it is too much."""
    return app.run(config, _open_source, _logits)


def _open_source(path: Path, adapter: str | None) -> "Source":
    from jaxllada.orbax_source import open_source

    return open_source(path, adapter=adapter)


def _logits(
    path: Path,
    adapter: "Adapter | None",
    dtype: str,
    ids: "np.ndarray",
    attention_mask: "np.ndarray",
) -> "np.ndarray":
    import jax
    import numpy as np

    from jaxllada.convert import load
    from jaxllada.models.lora import put_adapter

    model = load(path, dtype)
    model = model if adapter is None else put_adapter(model, adapter)
    forward = jax.jit(lambda model, ids, mask: model(ids, mask).astype("float32"))
    return np.asarray(forward(model, ids, attention_mask))
