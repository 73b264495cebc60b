"""What a model card says of where weights come from: metadata, the run and its settings."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from jaxllada.common.run.checkpoints import CHECKPOINTS

# Settings of a run that say nothing about the weights that came out of it.
_HOUSEKEEPING = re.compile(
    r"(output_dir|overwrite_output_dir|run_name|num_proc|logging_.*|eval_.*|save_.*|report_to"
    r"|sample_.*|resume|profile|compile_cache_dir|coordinator_address|num_processes|process_id"
    r"|per_device_eval_batch_size)"
)
_LORA = ("r", "lora_alpha", "lora_dropout", "target_modules")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# What a card of the source says about the weights and stays true when they are converted.
_KEPT = ("license", "license_name", "license_link", "language", "base_model", "datasets")


def metadata_of(source_folder: Path | None, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metadata for the head of a card; what the card of the source says goes before."""
    kept = _front_matter(source_folder)
    if "base_model" not in kept and (base := _hub_id(recipe.get("model_name_or_path"))):
        kept["base_model"] = base
    if "base_model" not in kept and source_folder is not None:
        # Where huggingface_hub puts what it downloads.
        cached = re.search(r"models--([^/]+?)--([^/]+)/snapshots/", source_folder.as_posix() + "/")
        if cached:
            kept["base_model"] = "/".join(cached.groups())
    names = [part.split("[")[0] for part in str(recipe.get("dataset_args") or "").split("+")]
    datasets = [found for part in names if (found := _hub_id(part.strip()))]
    if datasets and "datasets" not in kept:
        kept["datasets"] = datasets
    return {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llada", "masked-diffusion", "diffusion-language-model", "jaxllada"],
        **kept,
    }


def _front_matter(folder: Path | None) -> dict[str, Any]:
    """What the card in `folder` says about its weights."""
    file = folder / "README.md" if folder is not None else None
    if file is None or not file.is_file():
        return {}
    match = re.match(r"---\n(.*?)\n---\n", file.read_text(encoding="utf-8", errors="replace"), re.S)
    try:
        values = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError:
        return {}
    return {key: values[key] for key in _KEPT if key in values} if isinstance(values, dict) else {}


def _hub_id(name: Any) -> str | None:
    """`name` if it is a name on the Hub rather than a folder here."""
    is_id = isinstance(name, str) and _HUB_ID.fullmatch(name) and not Path(name).exists()
    return name if is_id else None


def training_part(recipe: Mapping[str, Any], run: Path | None) -> str:
    """Returns the part about the training; empty where nothing is known of it."""
    told = {
        key: value
        for key, value in recipe.items()
        if not _HOUSEKEEPING.fullmatch(key)
        and value not in (None, "", [])
        and (key not in _LORA or recipe.get("lora"))
    }
    if not told:
        return ""
    told = {key: _without_folders(value) for key, value in told.items()}
    settings = yaml.safe_dump(told, sort_keys=False, allow_unicode=True)
    text = f"## Training\n\nSettings of `jaxllada pretrain`:\n\n```yaml\n{settings}```"
    file = run / "summary.txt" if run is not None else None
    if file is not None and file.is_file() and (table := file.read_text(encoding="utf-8").strip()):
        text += f"\n\nAt the end of the run, in nats per token:\n\n```text\n{table}\n```"
    return text


def _without_folders(value: Any) -> Any:
    """Keeps the last name of absolute paths: where files lay is the business of that machine."""
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split("+")] if "/" in value else [value]
    return " + ".join(Path(part).name if Path(part).is_absolute() else part for part in parts)


def run_of(folder: Path | None) -> Path | None:
    """The output_dir that `folder` is, or is a checkpoint of."""
    if folder is not None and folder.parent.name == CHECKPOINTS:
        return folder.parent.parent
    return folder


def checkpoint_of(folder: Path) -> dict[str, Any]:
    """Returns which checkpoint of a run a folder is or lies in, as a setting for the card."""
    for place in (folder, folder.parent):
        if place.parent.name == CHECKPOINTS and place.name.isdecimal():
            return {"checkpoint": int(place.name)}
    return {}


def settings_of(folder: Path | None) -> dict[str, Any]:
    """The settings of a training run; empty for any other folder."""
    file = folder / "config.yaml" if folder is not None else None
    if file is None or not file.is_file():
        return {}
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    return values if isinstance(values, dict) else {}
