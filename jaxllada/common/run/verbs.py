"""What the verbs pretrain and evaluate do before and after a framework is asked for anything."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxllada.common.config.evaluate import EvaluateConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.data.row_options import RowOptions
from jaxllada.common.data.sources import for_chat, load_rows
from jaxllada.common.errors import UserError
from jaxllada.common.manifest import write_atomically
from jaxllada.common.notices import notice
from jaxllada.common.run.backend import Outcome
from jaxllada.common.run.guard import TrainingDivergedError
from jaxllada.common.run.origin import Origin, find_model, find_tokenizer, fit_preset
from jaxllada.common.run.run_folder import RunFolder
from jaxllada.common.summary import summary
from jaxllada.common.tokenizer import Tokenizer


def exit_code(pretrain: Callable[[], Outcome]) -> int:
    """Trains; returns 0, 1 after divergence, or 128 + the number of the signal that stopped it."""
    try:
        outcome = pretrain()
    except TrainingDivergedError as error:
        notice(f"error: {error}")
        return 1
    return 128 + outcome.signal if outcome.signal else 0


def checked(config: TrainConfig) -> tuple[Origin, Tokenizer, ModelConfig]:
    """Returns where a run starts, its tokenizer and its model, once they fit each other.

    Raises UserError for what the user can get wrong so far; reads no data and no weights.
    """
    if not config.dataset_args:
        raise UserError("dataset_args: not set; for example pystdlib, or a file or folder of text")
    origin = find_model(config.model_name_or_path)
    tokenizer = find_tokenizer(config.tokenizer_name_or_path, origin)
    if config.kind == "sft":
        tokenizer = for_chat(tokenizer, config.dataset_args, RowOptions.of(config))
    model = fit_preset(origin, tokenizer)
    check_length(config, model)
    return origin, tokenizer, model


def check_length(config: TrainConfig, model: ModelConfig) -> None:
    """Refuses rows longer than the model's positions."""
    if config.max_length > model.max_sequence_length:
        raise UserError(
            f"max_length={config.max_length}: the model's max_sequence_length is "
            f"{model.max_sequence_length}"
        )


def rows_of(config: TrainConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Reads the data of a run; says so where nothing can be evaluated."""
    rows = load_rows(config.dataset_args, tokenizer, RowOptions.of(config))
    if "test" not in rows and config.eval_strategy != "no":
        notice("dataset_args has no test split: nothing will be evaluated")
    return rows


def conclude(folder: RunFolder) -> None:
    """Prints what the run learnt and keeps the table in its folder; for process 0."""
    table = summary(folder.metrics)
    if table:
        write_atomically(folder.path / "summary.txt", f"{table}\n".encode())
        print(f"\n{table}")
    print(f"\nrun folder: {folder.path}")


def evaluated(
    config: EvaluateConfig,
) -> tuple[Origin, Tokenizer, TrainConfig, dict[str, Any]]:
    """Returns the model to measure, its tokenizer, the settings to do it with, and the rows.

    Raises UserError where the model has no weights, or the data no test split.
    """
    origin = find_model(config.model_name_or_path)
    if not origin.is_trained or origin.folder is None:
        raise UserError(f"model_name_or_path={config.model_name_or_path}: has no weights")
    settings = merged(config, origin.folder)
    tokenizer = find_tokenizer(settings.tokenizer_name_or_path, origin)
    tokenizer.agree_with(origin.config)
    check_length(settings, origin.config)
    rows = load_rows(settings.dataset_args, tokenizer, RowOptions.of(settings))
    if "test" not in rows:
        raise UserError(f"dataset_args={settings.dataset_args!r}: has no test split")
    return origin, tokenizer, settings, rows


def merged(config: EvaluateConfig, folder: Path) -> TrainConfig:
    """Returns the settings of the run in `folder`, if it is one, with what `config` sets."""
    from jaxllada.common.config.load import load_file

    path = folder / "config.yaml"
    base = load_file(TrainConfig, path) if path.is_file() else TrainConfig()
    changes = {
        "eval_mc": config.eval_mc,
        "eval_max_rows": config.eval_max_rows,
        "per_device_eval_batch_size": config.per_device_eval_batch_size,
        "num_proc": config.num_proc,
        "tokenizer_name_or_path": config.tokenizer_name_or_path,
        "bf16": config.bf16,
        "streaming": False,
    }
    for key in ("dataset_args", "text_field", "max_length"):
        if getattr(config, key):
            changes[key] = getattr(config, key)
    if config.load_preprocessed_data:
        changes["load_preprocessed_data"] = True
    if config.seed >= 0:
        changes["seed"] = config.seed
    settings = dataclasses.replace(base, **changes)
    if not settings.dataset_args:
        raise UserError("dataset_args: not set, and the model folder is not a run that knows it")
    return settings
