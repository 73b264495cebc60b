"""From prepared rows to what the loop reads: training batches and the validation bound."""

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import nn

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.data.batches import BatchSource, StreamSource
from jaxllada.common.run import inputs
from jaxllada.common.run.evaluation import Evaluation
from jaxllada.common.tokenizer import Tokenizer
from npu_backend.sharding import Mesh
from npu_backend.train.evaluate import make_evaluator


def share(mesh: Mesh) -> inputs.Share:
    """Which rows this process feeds."""
    return inputs.Share(mesh.rank, mesh.size, 1)


def train_source(
    config: TrainConfig, rows: Any, model: ModelConfig, mesh: Mesh
) -> BatchSource | StreamSource:
    """Returns the batches of a run, this process's share of them; `rows` are those of load_rows."""
    return inputs.train_source(config, rows, model, share(mesh))


def make_validation(
    config: TrainConfig,
    objective: nn.Module,
    model: ModelConfig,
    rows: Any,
    mesh: Mesh,
    tokenizer: Tokenizer | None = None,
) -> Callable[[], Evaluation]:
    """Returns a function that measures the weights in `objective` on these rows.

    With a tokenizer the result also has the bytes of the text that is measured.
    """
    evaluate = make_evaluator(objective, mesh)
    count = inputs.measured_bytes(config, rows, tokenizer)

    def measure() -> Evaluation:
        batches = inputs.validation_batches(config, rows, model, share(mesh))
        found = evaluate(batches, inputs.draws(config, model))
        return dataclasses.replace(found, bytes=count, is_exact=model.is_causal)

    return measure
