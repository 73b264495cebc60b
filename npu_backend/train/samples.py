"""Samples during a run: an engine around the weights of the moment."""

from collections.abc import Callable
from typing import Any

from jaxllada.common.config.train import TrainConfig
from jaxllada.common.run.samples import Probes, Samples, page_writer
from jaxllada.common.tokenizer import Tokenizer
from npu_backend.causal_engine import engine_of
from npu_backend.sharding import Mesh


def make_sampler(
    config: TrainConfig, network: Any, tokenizer: Tokenizer, probes: Probes, mesh: Mesh
) -> Callable[[], Samples] | None:
    """Returns a function that writes a page of texts; None where there is nothing to write.

    Runs of several processes write none: their weights are spread over machines.
    """
    write = page_writer(config, tokenizer, probes)
    if write is None or mesh.size > 1:
        return None

    def page() -> Samples:
        network.eval()
        try:
            return write(engine_of(network))
        finally:
            network.train()

    return page
