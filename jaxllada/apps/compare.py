"""Diffusion against autoregression at equal data and compute, the data seen once or many times.

Both models have one shape and train for the same steps on the same rows in the same order; only
the objective differs. For every number of repetitions the data is cut so that the steps see each
row that often (compare LLaDA, arXiv:2502.09992v3, section 3.1; arXiv:2511.03276 on repeated data).
Validation is the same text for all: an upper bound on the negative log-likelihood for diffusion,
the exact value for the autoregressive model, both in nats per byte of text.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxllada.common.config.train import TrainConfig
from jaxllada.common.errors import UserError

if TYPE_CHECKING:
    from jaxllada.common.run.backend import Outcome

SIDES = ("diffusion", "autoregressive")
Pretrain = Callable[[Any], "Outcome"]
"""The verb pretrain of a package."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig(TrainConfig):
    """The settings of every run, those of pretrain; output_dir gets a run folder for each."""

    model_name_or_path: str = "quickstart"
    """Diffusion model: preset, or folder with config.json."""
    twin_name_or_path: str = ""
    """Autoregressive model; empty: Qwen2 in the shape of the diffusion model."""
    repeats: tuple[int, ...] = (1, 4, 16)
    """How often the steps see each row, one pair of runs for each."""
    resume: str = "auto"
    """auto: go on where an earlier comparison in output_dir stopped; never: start anew."""
    sample_length: int = 0
    """New tokens per text sample; 0: no samples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("max_steps", self.max_steps > 0, "set: all runs have the same steps")
        self.require("resume", self.resume in ("auto", "never"), "auto or never")
        self.require("repeat_data", self.repeat_data == 0, "left out: repeats sets it")
        self.require("eval_strategy", self.eval_strategy != "no", "steps or epoch")
        counts = self.repeats
        self.require(
            "repeats",
            bool(counts) and min(counts) >= 1 and list(counts) == sorted(set(counts)),
            "rising numbers from 1 on, for example 1,4,16",
        )


def run(config: CompareConfig, pretrain: Pretrain, kind: type[TrainConfig]) -> int:
    """Trains what is not trained yet, then writes compare.json, compare.md and compare.png.

    `kind` is the class of the settings of `pretrain`. Returns 0, or what `pretrain` does when it
    was stopped or diverged; the table and the picture then hold the runs so far.
    """
    from jaxllada.common.comparison import compared, table, write
    from jaxllada.common.run.verbs import exit_code

    output, is_main = Path(config.output_dir), os.environ.get("RANK", "0") == "0"
    models = _models(config)
    plans = [(side, times) for times in config.repeats for side in SIDES]
    for number, (side, times) in enumerate(plans, 1):
        print(f"\n== run {number} of {len(plans)}: {side}, each row {times} times", flush=True)
        settings = _settings(config, kind, models[side], side, times)
        code = exit_code(functools.partial(pretrain, settings))
        if is_main:
            write(output, compared(output, plans))
        if code:
            return code
    if is_main:
        print(f"\n{table(compared(output, plans))}\n\nwritten to {output}/compare.md, .json, .png")
    return 0


def _models(config: CompareConfig) -> dict[str, dict[str, Any]]:
    """What decides the model of each side, once both are known to fit."""
    from jaxllada.common.config.qwen2 import twin_of
    from jaxllada.common.run.origin import find_model, find_tokenizer, fit_preset

    origin = find_model(config.model_name_or_path)
    if origin.config.is_causal:
        raise UserError(
            f"model_name_or_path={config.model_name_or_path}: is autoregressive; give the "
            "diffusion model here and this as twin_name_or_path"
        )
    tokenizer = find_tokenizer(config.tokenizer_name_or_path, origin)
    vocabulary = config.tokenizer_name_or_path or str(origin.folder)
    if config.twin_name_or_path:
        twin_name = config.twin_name_or_path
        twin = find_model(twin_name)
        if not twin.config.is_causal:
            raise UserError(f"twin_name_or_path={twin_name}: expected a qwen2 model")
        if twin.is_trained != origin.is_trained:
            raise UserError(
                f"twin_name_or_path={twin_name}: one of the two models has weights and the other "
                "has none"
            )
        fit_preset(twin, tokenizer)
    else:
        if origin.is_trained:
            raise UserError(
                f"model_name_or_path={config.model_name_or_path}: has weights, and its twin would "
                "start without; give a shape (preset or config.json), or twin_name_or_path"
            )
        shape, folder = twin_of(fit_preset(origin, tokenizer)), Path(config.output_dir) / "twin"
        folder.mkdir(parents=True, exist_ok=True)
        shape.save(folder)
        twin_name = str(folder)
    names = dict(zip(SIDES, (config.model_name_or_path, twin_name), strict=True))
    return {
        side: {"model_name_or_path": name, "tokenizer_name_or_path": vocabulary}
        for side, name in names.items()
    }


def _settings(
    config: CompareConfig, kind: type[TrainConfig], model: dict[str, Any], side: str, times: int
) -> TrainConfig:
    """The settings of one run: those of a plain pretrain, which could be repeated alone."""
    from jaxllada.common.comparison import run_name

    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(kind)}
    output, name = Path(config.output_dir), run_name(side, times)
    changes = {
        "output_dir": str(output / name),
        "run_name": f"{config.run_name or output.name}-{name}",
        "repeat_data": times,
    }
    return kind(**{**own, **model, **changes})
