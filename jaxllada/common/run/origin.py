"""What a run starts from: a named shape, released weights or an earlier run; its tokenizer."""

import dataclasses
import os
from pathlib import Path

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.opening import read_config
from jaxllada.common.config.presets import PRESETS
from jaxllada.common.errors import UserError, nearest
from jaxllada.common.notices import notice
from jaxllada.common.run.checkpoints import is_run_folder
from jaxllada.common.tokenizer import Tokenizer
from jaxllada.common.weights.adapted import base_name, is_adapter
from jaxllada.common.weights.hub import is_hub_id, local_folder


@dataclasses.dataclass(frozen=True)
class Origin:
    """What `model_name_or_path` names: a shape, or a folder with weights of that shape.

    `folder` is where config.json lies; None for a preset.
    """

    config: ModelConfig
    folder: Path | None
    is_trained: bool = False


def find_model(name: str, *, weights: bool = True) -> Origin:
    """Looks a model up: a path first (also below $BASE_MODELS_DIR), then a preset, then the Hub.

    A folder with checkpoints is a run, one with safetensors or an orbax checkpoint has weights, one
    with config.json alone (or that file itself) is a shape to start from; an adapter has the shape
    of the base it names. Without `weights` a model of the Hub is only looked at, not downloaded.
    """
    base = os.environ.get("BASE_MODELS_DIR")
    for path in [Path(name), *([Path(base) / name] if base else [])]:
        if path.is_file() and path.name.endswith(".json"):
            return Origin(read_config(path), path.parent)
        if is_adapter(path):
            return Origin(find_model(base_name(path), weights=weights).config, path, True)
        if (path / "config.json").is_file():
            return Origin(read_config(path), path, _has_weights(path))
    if name.lower() in PRESETS:
        return Origin(PRESETS[name.lower()], None)
    if Path(name).is_dir():
        raise UserError(f"model_name_or_path={name}: the folder has no config.json")
    if is_hub_id(name):
        path = local_folder(name, weights=weights)
        return Origin(read_config(path), path, _has_weights(path))
    raise UserError(
        f"model_name_or_path={name}: neither a folder with config.json nor one of the presets "
        f"{', '.join(PRESETS)}{nearest(name, PRESETS)}"
    )


def _has_weights(path: Path) -> bool:
    # Pickled weights count: they are refused with the reason instead of being passed over.
    names = ("*.safetensors", "pytorch_model*.bin", "params/_METADATA")
    return is_run_folder(path) or any(any(path.glob(name)) for name in names)


def find_tokenizer(name: str, origin: Origin) -> Tokenizer:
    """Reads the tokenizer of that folder, or the one beside the model where no name is given."""
    needs_mask = not origin.config.is_causal
    if name:
        base = os.environ.get("BASE_MODELS_DIR")
        inside = Path(base) / name if base and not Path(name).exists() else Path(name)
        is_remote = not inside.exists() and is_hub_id(name)
        folder = local_folder(name, weights=False) if is_remote else inside
        return Tokenizer.from_folder(folder, needs_mask=needs_mask)
    if origin.folder is not None and is_adapter(origin.folder):
        return find_tokenizer("", find_model(base_name(origin.folder), weights=False))
    if origin.folder is not None and (origin.folder / "tokenizer.json").is_file():
        return Tokenizer.from_folder(origin.folder, needs_mask=needs_mask)
    where = f"there is none in {origin.folder}" if origin.folder else "a preset has none"
    raise UserError(
        f"tokenizer_name_or_path: {where}; give a folder with tokenizer.json "
        "(`jaxllada tokenizer` trains one)"
    )


def fit_preset(origin: Origin, tokenizer: Tokenizer) -> ModelConfig:
    """Returns the model config to train, in agreement with the tokenizer.

    A preset is only a shape: its special ids become the tokenizer's. Any other config has to agree
    already, else UserError.
    """
    config = origin.config
    if origin.folder is None and tokenizer.vocab_size <= config.rows:
        ids = {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
        if not config.is_causal:
            ids = {"mask_token_id": tokenizer.mask_id, **ids}
        if any(getattr(config, key) != value for key, value in ids.items()):
            notice(
                "special ids from the tokenizer: "
                + ", ".join(f"{key}={value}" for key, value in ids.items())
            )
            config = dataclasses.replace(config, **ids)
    tokenizer.agree_with(config)
    return config
