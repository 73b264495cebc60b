"""Opens the model that a verb names with the JAX engine."""

from pathlib import Path

from jaxllada.apps.answering import ModelKeys
from jaxllada.common.engine import Engine


def open_engine(options: ModelKeys, folder: Path) -> Engine:
    """Reads the weights of a model folder or a run, in the type the options ask for."""
    from jaxllada.causal_engine import engine_of
    from jaxllada.convert import load

    return engine_of(
        load(folder, options.dtype, average=options.average, adapter=options.adapter or None)
    )
