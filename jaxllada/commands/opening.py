"""Opens the model that a verb names with the JAX engine."""

from pathlib import Path
from typing import TYPE_CHECKING

from jaxllada.apps.answering import Options

if TYPE_CHECKING:
    from jaxllada.engine import JaxEngine


def open_engine(options: Options, folder: Path) -> "JaxEngine":
    """Reads the weights of a model folder or a run, in the type the options ask for."""
    from jaxllada.engine import JaxEngine

    return JaxEngine.from_folder(folder, options.dtype, average=options.average)
