"""From prepared rows to what the loop reads: training batches, the validation bound, baselines."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.data.batches import BatchSource, StreamSource, evaluation_batches
from jaxllada.sharding import batch_shards, process_share
from jaxllada.train.evaluate import Evaluation, make_evaluator, uniform_bound, unigram_bound

Tree = Any


def process_rows(mesh: Mesh, per_device: int) -> int:
    """Rows of one micro-batch that this process feeds."""
    _, processes = process_share(mesh)
    return per_device * batch_shards(mesh) // processes


def train_source(
    config: TrainConfig, rows: Any, model: ModelConfig, mesh: Mesh
) -> BatchSource | StreamSource:
    """Returns the batches of a run, this process's share of them; `rows` are those of load_rows."""
    index, count = process_share(mesh)
    shared: dict[str, Any] = {
        "seed": config.seed,
        "micro_batch": process_rows(mesh, config.per_device_train_batch_size),
        "accumulation": config.gradient_accumulation_steps,
        "shard_index": index,
        "shard_count": count,
        "mask_id": model.mask_id,
        "pad_id": model.pad_token_id,
        "max_length": config.max_length,
        "eps": config.time_epsilon,
        "time_sampling": config.time_sampling,
        "random_length_ratio": config.random_length_ratio,
        "random_length_mode": config.random_length_mode,
    }
    if config.streaming:
        return StreamSource(rows, **shared)
    return BatchSource(rows, **shared)


def make_validation(
    config: TrainConfig, graphdef: Any, model: ModelConfig, rows: Any, mesh: Mesh
) -> Callable[[Tree], Evaluation]:
    """Compiles the validation bound of these rows as a function of the weights."""
    index, count = process_share(mesh)
    evaluate = make_evaluator(graphdef, mesh)

    def measure(params: Tree) -> Evaluation:
        batches = evaluation_batches(
            rows,
            seed=config.seed,
            batch_size=process_rows(mesh, config.per_device_eval_batch_size),
            mask_id=model.mask_id,
            pad_id=model.pad_token_id,
            max_length=config.max_length,
            mc=config.eval_mc,
            max_rows=config.eval_max_rows,
            eps=config.time_epsilon,
            shard_index=index,
            shard_count=count,
        )
        return evaluate(params, batches, config.eval_mc)

    return measure


def baselines(train_rows: Any, validation_rows: Any, model: ModelConfig, max_rows: int) -> dict:
    """Returns what a bound should beat, in nats per token on the validation rows that are used.

    `uniform_bound` is ln V; `unigram_bound` guesses by the frequencies of the training text and is
    left out where those cannot be counted (streams, prompt/answer rows).
    """
    found = {"uniform_bound": uniform_bound(model.vocab_size)}
    if validation_rows is not None and hasattr(train_rows, "token_counts"):
        counts = train_rows.token_counts(model.rows)[: model.vocab_size]
        total = len(validation_rows)
        used = min(max_rows, total) if max_rows else total
        chosen = np.zeros(model.vocab_size, np.int64)
        for number in np.arange(used) * total // used:
            tokens = validation_rows[int(number)].tokens
            chosen += np.bincount(tokens, minlength=model.vocab_size)[: model.vocab_size]
        found["unigram_bound"] = unigram_bound(counts, chosen)
    return found
