"""Adapters and the weights below them opened as one source.

An adapter is a PEFT folder, or a training run whose checkpoints are such folders. Its file names
the base by path or id, so that the folder alone is enough where the base is found.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxllada.common.config.family import read_config_json
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.errors import UserError
from jaxllada.common.manifest import step_folders
from jaxllada.common.run.checkpoints import CHECKPOINTS, sound_checkpoint
from jaxllada.common.weights.adapter import MergedSource
from jaxllada.common.weights.hub import local_folder
from jaxllada.common.weights.peft import CONFIG, read_adapter
from jaxllada.common.weights.source import Source


def is_adapter(path: Path) -> bool:
    """Whether a folder is that of an adapter alone."""
    return (path / CONFIG).is_file() and not (path / "config.json").is_file()


def adapter_folder(path: str | os.PathLike[str], step: int | None = None) -> Path | None:
    """Returns the PEFT folder at `path`; None where something else lies there.

    Of a run it is the newest sound checkpoint, or that of `step`.
    """
    path = Path(path)
    if is_adapter(path):
        if step is not None:
            raise UserError(f"step={step}: {path} is not the folder of a training run")
        return path
    folders = step_folders(path / CHECKPOINTS).values()
    if any((folder / CONFIG).is_file() for folder in folders):
        return sound_checkpoint(path, step)
    return None


def base_name(folder: Path) -> str:
    """What an adapter folder calls its base: a path or an id of the Hub."""
    name = read_config_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError(
            f"{folder}: does not name its base; give the base as the model and this as adapter"
        )
    return name


def base_folder(folder: Path) -> Path:
    """Finds the base of an adapter folder: a path, also below $BASE_MODELS_DIR, or on the Hub."""
    name, models = base_name(folder), os.environ.get("BASE_MODELS_DIR")
    for path in [Path(name), *([Path(models) / name] if models else [])]:
        if path.is_dir():
            return path
    try:
        return local_folder(name)
    except UserError as error:
        raise UserError(
            f"{folder}: its base is not here ({error}); "
            "give the base as the model and this folder as adapter"
        ) from error


def inspect_adapter(folder: Path, config: ModelConfig) -> dict[str, Any]:
    """Describes an adapter folder: rank, scale, modules, numbers, and what it calls its base."""
    adapter = read_adapter(folder, config)
    return {
        "r": adapter.r,
        "scale": adapter.scale,
        "modules": [path[-1] for path in adapter.factors],
        "parameters": sum(a.size + b.size for a, b in adapter.factors.values()),
        "base": adapter.extra.get("base_model_name_or_path"),
    }


def open_adapted(
    path: Path,
    step: int | None,
    adapter: str | os.PathLike[str] | None,
    open_plain: Callable[[Path, int | None], Source],
) -> Source:
    """Opens weights with an adapter added, where one is given or `path` is one itself.

    `open_plain` opens a folder without adapters at a step. Without any adapter, so does this.

    Raises:
        UserError: no adapter where one is named, two on each other, a base that is not found.
    """
    own = adapter_folder(path, step)
    if own is None and adapter is None:
        return open_plain(path, step)
    if own is None:
        base, folder = open_plain(path, step), adapter_folder(local_folder(adapter or ""))
        if folder is None:
            raise UserError(
                f"adapter={adapter}: holds no {CONFIG}, nor is it a run that trains adapters"
            )
    elif adapter is not None:
        raise UserError(f"adapter={adapter}: {path} has an adapter already; merge that one first")
    else:
        folder, under = own, base_folder(own)
        if adapter_folder(under) is not None:
            raise UserError(f"{own}: its base {under} is an adapter too; merge that one first")
        base = open_plain(under, None)
    return MergedSource(base, read_adapter(folder, base.config), folder)
