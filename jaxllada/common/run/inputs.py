"""From prepared rows to what a loop reads: the share of one process in batches and evaluations."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.qwen2 import CausalConfig
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.data.batches import Batch, BatchSource, StreamSource, evaluation_batches
from jaxllada.common.data.rows import Rows, SomeRows, as_rows
from jaxllada.common.errors import UserError
from jaxllada.common.noise import permutation
from jaxllada.common.run.evaluation import text_bytes
from jaxllada.common.tokenizer import Tokenizer


class Share(NamedTuple):
    """What one process feeds: part `index` of `count`, its `devices` groups with rows of their
    own (devices that split one row count as one)."""

    index: int
    count: int
    devices: int


def special_ids(model: ModelConfig) -> dict[str, Any]:
    """The ids batches are made with; without a mask rows are shifted for next-token prediction."""
    if isinstance(model, CausalConfig):
        return {"mask_id": None, "start_id": model.start_id, "pad_id": model.pad_token_id}
    return {"mask_id": model.mask_id, "pad_id": model.pad_token_id}


def draws(config: TrainConfig, model: ModelConfig) -> int:
    """Noise draws per validation row; an autoregressive model is measured without noise, once."""
    return 1 if model.is_causal else config.eval_mc


def measured_bytes(config: TrainConfig, rows: Any, tokenizer: Tokenizer | None) -> int | None:
    """Bytes of the validation text an evaluation counts, where the tokenizer can tell."""
    if tokenizer is None or tokenizer.byte_lengths is None:
        return None
    return text_bytes(as_rows(rows), config.eval_max_rows, tokenizer.byte_lengths)


def train_source(
    config: TrainConfig, rows: Any, model: ModelConfig, share: Share
) -> BatchSource | StreamSource:
    """Returns the batches of a run, this process's share of them; `rows` are those of load_rows."""
    settings: dict[str, Any] = {
        "seed": config.seed,
        "micro_batch": config.per_device_train_batch_size * share.devices,
        "accumulation": config.gradient_accumulation_steps,
        "shard_index": share.index,
        "shard_count": share.count,
        **special_ids(model),
        "max_length": config.max_length,
        "eps": config.time_epsilon,
        "time_sampling": config.time_sampling,
        "random_length_ratio": config.random_length_ratio,
        "random_length_mode": config.random_length_mode,
        "pad_policy": config.pad_policy or None,
        "pad_to_multiple": config.pad_to_multiple,
    }
    if has_answers(rows):
        # The default is for running text; a value of one's own is refused by name.
        default = TrainConfig.random_length_ratio
        if config.random_length_ratio == default:
            settings["random_length_ratio"] = 0.0
    else:
        for key in ("pad_policy", "group_by_length"):
            if getattr(config, key):
                raise UserError(
                    f"{key}={getattr(config, key)}: is for prompt/answer rows, and "
                    "dataset_args gives running text"
                )
    if config.streaming:
        return StreamSource(rows, **settings)
    if config.repeat_data:
        whole = settings["micro_batch"] * settings["accumulation"] * settings["shard_count"]
        rows = repeated(as_rows(rows), config, config.max_steps * whole)
    return BatchSource(rows, group_by_length=config.group_by_length, **settings)


def has_answers(rows: Any) -> bool:
    """Whether rows (or a stream of them) are prompts with answers, not running text."""
    rows = rows if callable(rows) else as_rows(rows)
    return getattr(rows, "pad_policy", "ignore") == "eos_supervised"


def repeated(rows: Rows, config: TrainConfig, examples: int) -> SomeRows:
    """The rows of a run of so many examples that sees each of them `repeat_data` times.

    A random choice by the seed; those of a larger `repeat_data` are among those of a smaller.
    """
    wanted = -(-examples // config.repeat_data)
    if wanted > len(rows):
        raise UserError(
            f"repeat_data={config.repeat_data}: {config.max_steps} steps need {wanted} rows, but "
            f"the data has {len(rows)}; lower max_steps or repeat more often"
        )
    order = permutation(config.seed, _NO_EPOCH, len(rows))
    return SomeRows(rows, np.sort(order[:wanted]))


_NO_EPOCH = 1 << 40
"""A shuffle that no epoch of the training data is."""


def validation_batches(
    config: TrainConfig, rows: Any, model: ModelConfig, share: Share
) -> Iterator[Batch]:
    """Returns the batches of one evaluation, this process's share of each."""
    return evaluation_batches(
        rows,
        seed=config.seed,
        batch_size=config.per_device_eval_batch_size * share.devices,
        **special_ids(model),
        max_length=config.max_length,
        mc=draws(config, model),
        max_rows=config.eval_max_rows,
        eps=config.time_epsilon,
        shard_index=share.index,
        shard_count=share.count,
    )
