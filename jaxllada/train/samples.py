"""Samples during a run: an engine around the weights of the moment."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from jaxllada.causal_engine import engine_of
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.run.samples import Probes, Samples, page_writer
from jaxllada.common.tokenizer import Tokenizer

Tree = Any


def make_sampler(
    config: TrainConfig, graphdef: Any, tokenizer: Tokenizer, probes: Probes
) -> Callable[[Tree], Samples] | None:
    """Returns a function from weights to a page of texts; None where there is nothing to write.

    Runs of several processes write none: their weights are spread over machines.
    """
    write = page_writer(config, tokenizer, probes)
    if write is None or jax.process_count() > 1:
        return None

    def page(params: Tree) -> Samples:
        return write(engine_of(nnx.merge(graphdef, params)))

    return page
