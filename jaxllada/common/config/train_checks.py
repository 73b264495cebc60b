"""What the settings of a training run must be, each on its own and beside the others."""

import math
from typing import Any

from jaxllada.common.data.padding import trained_padding

_AT_LEAST_ONE = (
    *("num_proc", "max_length", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "logging_steps", "eval_mc", "r", "mesh_fsdp", "mesh_tensor"),
    *("max_skipped_steps", "max_spiking_steps", "pad_to_multiple"),
)
_NOT_NEGATIVE = (
    *("seed", "learning_rate", "warmup_steps", "adam_epsilon", "weight_decay", "max_grad_norm"),
    *("eval_max_rows", "save_steps", "save_total_limit", "sample_length", "max_rollbacks"),
    "sample_steps",
    "repeat_data",
)
_SHARES = (
    *("random_length_ratio", "warmup_ratio", "lr_decay_ratio", "min_lr_ratio", "lora_dropout"),
)


def check_train(config: Any) -> None:
    """Raises a UserError where a `TrainConfig` could not work, with the key and its value."""
    must = config.require
    for key in _AT_LEAST_ONE:
        must(key, getattr(config, key) >= 1, "at least 1")
    for key in _NOT_NEGATIVE:
        must(key, 0 <= getattr(config, key) < math.inf, "0 or more")
    for key in _SHARES:
        must(key, 0 <= getattr(config, key) <= 1, "between 0 and 1")
    for key in ("adam_beta1", "adam_beta2", "ema_decay"):
        must(key, 0 <= getattr(config, key) < 1, "at least 0 and below 1")
    must("lora_dropout", config.lora_dropout < 1, "below 1")
    must("lora_alpha", 0 < config.lora_alpha < math.inf, "above 0")
    must("seed", config.seed < 2**32, "below 2**32")
    must("time_epsilon", 0 < config.time_epsilon < 1, "above 0 and below 1")
    must("rollback_lr_factor", 0 < config.rollback_lr_factor <= 1, "above 0, at most 1")
    must("spike_sigma", 0 < config.spike_sigma < math.inf, "above 0")
    for key, default in (("spike_sigma", 4.0), ("max_spiking_steps", 10)):
        is_used = config.loss_spike != "ignore" or getattr(config, key) == default
        must(key, is_used, "left out beside loss_spike: ignore")
    can_roll_back = config.max_rollbacks > 0 or config.loss_spike != "rollback"
    must("max_rollbacks", can_roll_back, "above 0 beside loss_spike: rollback")
    for key in ("mesh_data", "num_processes"):
        must(key, getattr(config, key) == -1 or getattr(config, key) >= 1, "-1 or above 0")
    must("max_steps", config.max_steps == -1 or config.max_steps > 0, "-1 or above 0")
    must("num_train_epochs", config.num_train_epochs > 0, "above 0")
    has_length = config.max_steps > 0 and not config.streaming
    must(
        "repeat_data",
        has_length or not config.repeat_data,
        "0 unless max_steps is set and streaming is false",
    )
    must("output_dir", bool(config.output_dir.strip()), "a folder")
    must(
        "eval_strategy",
        not (config.eval_strategy == "epoch" and config.streaming),
        "no or steps beside streaming: true, which has no epochs",
    )
    must("eval_steps", config.eval_steps > 0 or config.eval_strategy != "steps", "above 0")
    for key in ("eval_steps", "save_steps", "sample_steps"):
        value = getattr(config, key)
        must(key, value < 1 or value == int(value), "a whole number, or a share < 1")
    must(
        "warmup_ratio",
        not (config.warmup_ratio and config.warmup_steps),
        f"left out beside warmup_steps={config.warmup_steps}",
    )
    if config.pad_policy:
        trained_padding(config.pad_policy)
    must(
        "group_by_length",
        not (config.group_by_length and config.streaming),
        "false beside streaming: true, which knows no lengths ahead",
    )
    _check_named_schedule(config)
    uses_segments = config.lr_scheduler_type == "segments"
    must(
        "lr_segments",
        bool(config.lr_segments) == uses_segments,
        "set together with lr_scheduler_type: segments"
        if config.lr_segments
        else "a list of segments when lr_scheduler_type is segments",
    )
    must(
        "remat",
        not (config.gradient_checkpointing and config.remat not in ("none", "full")),
        "left out beside gradient_checkpointing: true",
    )
    must(
        "coordinator_address",
        not config.coordinator_address or config.num_processes > 1,
        "left out unless num_processes is above 1",
    )


def _check_named_schedule(config: Any) -> None:
    """A schedule with a name has its own decay; changing it needs the plain ones."""
    if config.lr_scheduler_type not in ("llada-sft", "dllm"):
        return
    for key, default in (("lr_decay_ratio", 0.1), ("min_lr_ratio", 0.0)):
        plain = "wsd" if config.lr_scheduler_type == "llada-sft" else "cosine"
        config.require(
            key,
            getattr(config, key) == default,
            f"left out beside lr_scheduler_type: {config.lr_scheduler_type}; use {plain}",
        )
