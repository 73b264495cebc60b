"""The verb `verify` (`jaxllada/apps/verify.py`) with the sources and the model of JAX."""

from typing import TYPE_CHECKING

from jaxllada.apps import verify as app
from jaxllada.apps.verify import Config, Model

if TYPE_CHECKING:
    import numpy as np

    from jaxllada.common.weights.source import Source

__all__ = ["Config", "run"]
__doc__ = app.__doc__


def run(config: Config) -> int:
    """Prints what differs; returns 1 if anything does."""
    return app.run(config, _open_source, _logits)


def _open_source(model: Model) -> "Source":
    from jaxllada.convert import open_source

    return open_source(model.path, model.step, adapter=model.adapter)


def _logits(
    model: Model, dtype: str, ids: "np.ndarray", attention_mask: "np.ndarray"
) -> "np.ndarray":
    import jax
    import numpy as np

    from jaxllada.convert import load

    weights = load(model.path, dtype, step=model.step, adapter=model.adapter)
    forward = jax.jit(lambda weights, ids, mask: weights(ids, mask).astype("float32"))
    return np.asarray(forward(weights, ids, attention_mask))
