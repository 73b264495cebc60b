"""From prepared rows to what the loop reads: training batches and the validation bound."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.data.batches import BatchSource, StreamSource
from jaxllada.common.run import inputs
from jaxllada.common.run.evaluation import Evaluation
from jaxllada.common.tokenizer import Tokenizer
from jaxllada.sharding import batch_shards, process_share
from jaxllada.train.evaluate import make_evaluator

Tree = Any


def share(mesh: Mesh) -> inputs.Share:
    """Which rows this process feeds."""
    index, count = process_share(mesh)
    return inputs.Share(index, count, batch_shards(mesh) // count)


def train_source(
    config: TrainConfig, rows: Any, model: ModelConfig, mesh: Mesh
) -> BatchSource | StreamSource:
    """Returns the batches of a run, this process's share of them; `rows` are those of load_rows."""
    return inputs.train_source(config, rows, model, share(mesh))


def make_validation(
    config: TrainConfig,
    graphdef: Any,
    model: ModelConfig,
    rows: Any,
    mesh: Mesh,
    tokenizer: Tokenizer | None = None,
) -> Callable[[Tree], Evaluation]:
    """Compiles the validation bound of these rows as a function of the weights.

    With a tokenizer the result also has the bytes of the text that is measured.
    """
    evaluate = make_evaluator(graphdef, mesh)
    count = inputs.measured_bytes(config, rows, tokenizer)

    def measure(params: Tree) -> Evaluation:
        batches = inputs.validation_batches(config, rows, model, share(mesh))
        found = evaluate(params, batches, inputs.draws(config, model))
        return dataclasses.replace(found, bytes=count, is_exact=model.is_causal)

    return measure
