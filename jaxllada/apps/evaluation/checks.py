"""What a task and the settings cannot have together, told before the model is read."""

import os
from typing import Any

from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.errors import UserError

RANKINGS = {"acc", "acc_norm", "acc_bytes", "f1", "mcc"}
"""Metrics that ask only which option is best."""


def check_task(
    name: str, task: Any, num_fewshot: int | None, estimate: LikelihoodConfig, runs_code: bool
) -> None:
    """Raises `UserError` for a task of lm_eval that these settings would measure wrongly.

    `runs_code`: whether the user allows to run what the model writes.
    """
    if task.config.num_fewshot == 0 and num_fewshot:
        raise UserError(
            f"num_fewshot={num_fewshot}: task {name} takes none, by its own definition (its"
            " prompt is fixed); leave num_fewshot out"
        )
    if getattr(task, "UNSAFE_CODE", False):
        if not runs_code:
            raise UserError(
                f"task {name} runs the code that the model writes on this machine:"
                " confirm_run_unsafe_code=true allows it, best in a container"
            )
        os.environ.setdefault("HF_ALLOW_CODE_EVAL", "1")
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"task {name} shows pictures or sound, which this model cannot read")
    _check_metrics(name, task, estimate)


def _check_metrics(name: str, task: Any, estimate: LikelihoodConfig) -> None:
    metrics = set(getattr(task, "_metric_fn_list", ()))
    judges = callable(task.config.process_results)
    needed = {"loglikelihood": "acc", "multiple_choice": "exact_match"}.get(task.OUTPUT_TYPE)
    if needed in metrics and not judges and not estimate.greedy_check:
        raise UserError(
            f"greedy_check=false with task {name}: its metric {needed} asks whether greedy decoding"
            " gives the answer; set greedy_check=true"
        )
    others = ["process_results"] if judges else sorted(metrics - RANKINGS)
    if estimate.stop_level and task.OUTPUT_TYPE == "multiple_choice" and others:
        raise UserError(
            f"stop_level={estimate.stop_level} with task {name}: {others[0]} asks for more than"
            " which option is best; use stop_level=0"
        )
