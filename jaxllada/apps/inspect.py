"""Counts parameters, FLOPs and bytes of a model and lists what a folder holds; reads no weights.

jaxllada inspect llada-8b
jaxllada inspect path/to/folder
jaxllada inspect runs/mine --step 2000
jaxllada inspect --fit 100M --vocab 32000 --save models/mine
"""

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.opening import read_config
from jaxllada.common.config.presets import PRESETS, preset
from jaxllada.common.errors import UserError, nearest

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9}


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str = field(default="", metadata={"positional": True})
    """Preset, config.json, model folder, converted checkpoint or run; headers are checked too."""
    adapter: str = ""
    """LoRA adapter of the model: a PEFT folder or a run that trained one; a run that trained one
    may also be the model."""
    fit: str = ""
    """Instead of a model: a parameter budget such as 100M or 1.5B to shape a model for."""
    vocab: int = 0
    """Vocabulary size of the fitted model; 0: that of LLaDA, 126464."""
    step: int = 0
    """Checkpoint of a training run; 0: the newest."""
    length: int = 0
    """Sequence length the FLOPs are counted at; 0: the context of the model."""
    save: str = ""
    """Folder to write the config.json to."""
    json: bool = False
    """Print one JSON object instead of tables."""

    def __post_init__(self) -> None:
        if bool(self.model) == bool(self.fit):
            raise UserError(
                "expected either a model or --fit: jaxllada inspect llada-100m, "
                "or jaxllada inspect --fit 100M --vocab 32000"
            )
        if self.vocab and not self.fit:
            raise UserError(f"vocab={self.vocab}: only --fit takes a vocabulary size")
        for key in ("vocab", "length", "step"):
            if getattr(self, key) < 0:
                raise UserError(f"{key}={getattr(self, key)}: expected 0 or more")


Look = Callable[[Path, int | None], dict[str, Any] | None]


def run(config: Config, look: Look | None = None) -> int:
    """Prints the sizes; returns 1 when weight files do not hold what the config asks for.

    `look` describes the weights of a folder at a step, or returns None where it finds none.
    """
    from jaxllada.common.notices import notice
    from jaxllada.common.weights.adapted import adapter_folder, inspect_adapter
    from jaxllada.common.weights.inspection import inspect_weights

    look = look or inspect_weights
    model = _model(config)
    name = config.model or f"fit {config.fit}"
    report = {"model": name, **measure(model, config.length or model.max_sequence_length)}
    folder = Path(config.model)
    is_folder = bool(config.model) and folder.is_dir()
    own = adapter_folder(folder, config.step or None) if is_folder else None
    adapter = own if own or not config.adapter else adapter_folder(Path(config.adapter))
    if config.adapter and (own or adapter is None):
        fact = f"{config.model} has one already" if own else "holds no adapter"
        raise UserError(f"adapter={config.adapter}: {fact}")
    if adapter is not None:
        report["adapter"] = inspect_adapter(adapter, model)
    if is_folder and own is None and (weights := look(folder, config.step or None)):
        report["weights"] = weights
    elif look is inspect_weights and (folder / "params" / "_METADATA").is_file():
        notice(f"{folder} holds an orbax checkpoint: `jaxllada inspect` lists what is in it")
    elif config.step and own is None:
        raise UserError(f"step={config.step}: {config.model} is not the folder of a training run")
    if config.save:
        Path(config.save).mkdir(parents=True, exist_ok=True)
        model.save(config.save)
    if config.json:
        print(json.dumps(report, indent=2))
    else:
        from jaxllada.apps.inspect_report import print_report

        print_report(report, model)
        if config.save:
            print(f"\nwrote {Path(config.save) / 'config.json'}")
    return 0 if report.get("weights", {}).get("complete", True) else 1


def measure(model: ModelConfig, length: int) -> dict[str, Any]:
    """Returns parameters by part, FLOPs per token at `length` tokens, and sizes in bytes."""
    from jaxllada.common.counting import checkpoint_bytes, count_parameters, flops_per_token

    count = count_parameters(model)
    forward = flops_per_token(model, length)
    half = flops_per_token(model, length, head_fraction=0.5)
    return {
        "config": model.to_dict(),
        "parameters": {**dataclasses.asdict(count), "total": count.total, "body": count.body},
        "length": length,
        "flops_per_token": {
            "forward": forward,
            "training": 3 * forward,
            "training_masked_only": 3 * half,
        },
        "bytes": {
            "checkpoint_bfloat16": checkpoint_bytes(model, "bfloat16"),
            "checkpoint_float32": checkpoint_bytes(model, "float32"),
            # float32 weights and two moments of Adam; the gradient lives during a step only.
            "training_state": 3 * checkpoint_bytes(model, "float32"),
            "gradient": checkpoint_bytes(model, "float32"),
        },
    }


def _model(config: Config) -> ModelConfig:
    from jaxllada.common.run.origin import find_model
    from jaxllada.common.weights.adapted import is_adapter

    if config.fit:
        from jaxllada.common.counting import fit

        template = preset("llada-100m")
        return fit(_budget(config.fit), config.vocab or template.vocab_size, template=template)
    if is_adapter(Path(config.model)):
        return find_model(config.model, weights=False).config
    if Path(config.model).exists():
        return read_config(config.model)
    if config.model.lower() in PRESETS:
        return preset(config.model.lower())
    raise UserError(
        f"model={config.model}: no such file or folder, and not one of the presets "
        f"{', '.join(PRESETS)}{nearest(config.model.lower(), PRESETS)}"
    )


def _budget(text: str) -> int:
    match = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)\s*([kKmMbBgG]?)", text.strip())
    if not match or float(match[1]) == 0:
        raise UserError(f"fit={text}: expected a number of parameters such as 100M or 1.5B")
    return round(float(match[1]) * _UNITS[match[2].upper()])
