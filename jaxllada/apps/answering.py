"""What `sample` and `chat` share: which model answers, and with which sampling options."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxllada.apps.sampling_keys import SamplingKeys
from jaxllada.common.config.compute import Dtype
from jaxllada.common.engine import Engine
from jaxllada.common.errors import UserError

if TYPE_CHECKING:
    from jaxllada.common.run.origin import Origin
    from jaxllada.common.tokenizer import Tokenizer

OpenEngine = Callable[[Any, Path], Engine]
"""(options, model folder) -> the engine of a backend; raises `UserError`."""


@dataclass(frozen=True, kw_only=True)
class ModelKeys:
    """Keys of every verb that opens a model."""

    model_name_or_path: str = field(metadata={"positional": True})
    """Model folder: a released one, or the output_dir of a training run."""
    tokenizer_name_or_path: str = ""
    """Folder with tokenizer.json, if it is not in the model folder."""
    adapter: str = ""
    """LoRA adapter to add to the model: a PEFT folder, a run that trained one, or an id. Such a
    run can also be the model itself: its base is found by name."""
    average: bool | None = None
    """Take the exponential average of a run's weights; by default where the run kept one."""
    dtype: Dtype | None = None
    """Type of weights and activations; the stored one by default."""


@dataclass(frozen=True, kw_only=True)
class Options(ModelKeys, SamplingKeys):
    """Keys of every verb that generates text."""

    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)


def check_seed(seed: int) -> None:
    """Raises `UserError` for a seed that not every backend takes."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} must lie in [0, 2**32)")


def open_model(options: ModelKeys, open_engine: OpenEngine) -> "tuple[Engine, Tokenizer]":
    """Reads tokenizer and model; raises `UserError` where they are missing or do not fit."""
    origin, tokenizer = look_up(options)
    assert origin.folder is not None
    return open_engine(options, origin.folder), tokenizer


def look_up(options: ModelKeys, *, weights: bool = True) -> "tuple[Origin, Tokenizer]":
    """Finds the model and reads its config and tokenizer; raises `UserError`.

    Without `weights` those of a model on the Hub are not downloaded yet.
    """
    from jaxllada.common.run.checkpoints import is_run_folder
    from jaxllada.common.run.origin import find_model, find_tokenizer
    from jaxllada.common.weights.hub import is_hub_id

    name = options.model_name_or_path
    origin = find_model(name, weights=weights)
    comes_later = not weights and not Path(name).exists() and is_hub_id(name)
    if origin.folder is None or not (origin.is_trained or comes_later):
        raise UserError(
            f"model_name_or_path={options.model_name_or_path}: there are no weights;"
            " give a released model folder or the output_dir of a run that has saved a checkpoint"
        )
    if options.average is not None and not is_run_folder(origin.folder):
        given = str(options.average).lower()
        raise UserError(f"average={given}: only training runs keep an average of their weights")
    tokenizer = find_tokenizer(options.tokenizer_name_or_path, origin)
    tokenizer.agree_with(origin.config)
    return origin, tokenizer


def check_trace_name(name: str) -> None:
    """Raises `UserError` where a trace could not be written when the answer is there."""
    if name and not name.endswith(".npz"):
        raise UserError(f"trace={name}: expected a name that ends in .npz")
    if name and not Path(name).absolute().parent.is_dir():
        raise UserError(f"trace={name}: its folder does not exist")
