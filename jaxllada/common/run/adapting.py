"""What a run that trains adapters settles before a framework is asked for anything."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from jaxllada.common.config.lora import LoraConfig, lora_config
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.counting import count_parameters
from jaxllada.common.errors import UserError
from jaxllada.common.notices import notice
from jaxllada.common.run.origin import Origin
from jaxllada.common.weights.adapted import adapter_folder
from jaxllada.common.weights.adapter import is_kernel, target_paths
from jaxllada.common.weights.hub import is_hub_id
from jaxllada.common.weights.layouts import FOLDERS, own_layout
from jaxllada.common.weights.names import entry_shape, llada_table
from jaxllada.common.weights.peft import AdapterFiles
from jaxllada.common.weights.source import Source

Settings = TypeVar("Settings", bound=TrainConfig)


def settle_adapters(
    config: Settings,
    origin: Origin,
    open_source: Callable[[Path], Source],
    *,
    is_main: bool = True,
) -> tuple[Settings, AdapterFiles | None]:
    """Returns the settings of a run with the types of its frozen weights, and what it writes.

    Weights that are stored in bfloat16 stay so, and are computed with in bfloat16 unless `bf16` is
    set; process 0 tells which were chosen. Without `lora`, returns (config, None).

    Raises:
        UserError: there are no weights to put adapters on, or they cannot be adapted so.
    """
    lora = lora_config(config)
    if lora is None:
        return config, None
    name = config.model_name_or_path
    if origin.folder is None or not origin.is_trained:
        raise UserError(f"lora=true: model_name_or_path={name} has no weights to adapt")
    if adapter_folder(origin.folder) is not None:
        raise UserError(
            f"lora=true: model_name_or_path={name} is an adapter itself; merge it first, or go on "
            "with its run by resume=auto"
        )
    _check_targets(lora, origin.config)
    source = open_source(origin.folder)
    stored, layout = source.dtype(source.entries[0]).name, source.kind
    source.close()
    is_narrow = stored == "bfloat16"
    config = dataclasses.replace(
        config,
        bf16=is_narrow if config.bf16 is None else config.bf16,
        param_dtype="bfloat16" if is_narrow else config.param_dtype,
    )
    if is_main:
        notice(_told(config, lora, origin.config, stored))
    layout = layout if layout in FOLDERS else own_layout(origin.config).name
    base = name if is_hub_id(name) and not _is_local(name, origin) else str(origin.folder.resolve())
    return config, AdapterFiles(origin.config, lora, base, layout)


def count_trained(lora: LoraConfig, model: ModelConfig) -> int:
    """Numbers in the adapters of a model; a factor that q, k and v share counts once."""
    paths = target_paths(model, lora.target_modules)
    total = 0
    for entry in filter(is_kernel, llada_table(model)):
        if entry.path[:-1] in paths:
            width, out = entry_shape(model, entry)
            total += lora.r * (width + out) * model.n_layers
    fused = _fused(paths) if model.block_type == "sequential" else []
    return total - max(0, len(fused) - 1) * lora.r * model.d_model * model.n_layers


def _told(config: TrainConfig, lora: LoraConfig, model: ModelConfig, stored: str) -> str:
    trained, total = count_trained(lora, model), count_parameters(model).total
    layers = len(target_paths(model, lora.target_modules)) * model.n_layers
    kept = f"kept in {config.param_dtype}"
    kept += "" if stored == config.param_dtype else f" (stored: {stored})"
    dtype = "bfloat16" if config.bf16 else "float32"
    return (
        f"adapters of rank {lora.r} on {layers} dense layers: {trained:,} numbers are trained, "
        f"{100 * trained / total:.2g} % of the model's; frozen weights {kept}, computing in {dtype}"
    )


def _check_targets(lora: LoraConfig, model: ModelConfig) -> None:
    paths = target_paths(model, lora.target_modules)
    if model.block_type == "sequential" and len(_fused(paths)) not in (0, 3):
        raise UserError(
            f"target_modules={lora.target_modules}: q, k and v are one layer in the files of this "
            "model; name att_proj, which means all three, or none of them"
        )


def _fused(paths: tuple[tuple[str, ...], ...]) -> list[tuple[str, ...]]:
    return [path for path in paths if path[-1] in ("q_proj", "k_proj", "v_proj")]


def _is_local(name: str, origin: Origin) -> bool:
    assert origin.folder is not None
    return Path(name).is_dir() or str(origin.folder).endswith(name)
