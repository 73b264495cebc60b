"""Where the weights of a run come from: a shape to fill, released weights, or an earlier run.

The model is made without memory, split over the mesh, and only then filled: every process reads
its own rows of the files, so no machine ever holds the whole model once per process.
"""

import contextlib
from collections.abc import Mapping

import ml_dtypes  # noqa: F401  # gives NumPy its bfloat16
import numpy as np
import torch
from torch import Tensor, nn

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.lora import LoraConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.run.origin import Origin
from jaxllada.common.weights.opening import open_folder
from jaxllada.common.weights.source import Source
from npu_backend.convert import stored_tensor
from npu_backend.models.family import abstract_model
from npu_backend.models.initializers import initial_tensor
from npu_backend.models.lora import add_adapters, initial_factors, share_factors
from npu_backend.models.mask_predictor import MaskPredictor
from npu_backend.models.names import placements
from npu_backend.sharding import Mesh, local, rows_of, shard
from npu_backend.train.step import Objective


def make_network(
    config: ModelConfig, compute: ComputeConfig, mesh: Mesh, lora: LoraConfig | None = None
) -> tuple[MaskPredictor, nn.Module]:
    """Returns (network, objective) over the mesh, with memory on the devices but no values yet."""
    network = abstract_model(config, compute)
    if lora is not None:
        add_adapters(network, lora)
    objective = Objective(network)
    if not mesh.is_sharded:
        objective.to_empty(device=mesh.device)
    objective = shard(objective, list(network.blocks), mesh, compute)
    if mesh.is_sharded:  # only now: the whole model may not fit on one device
        objective.to_empty(device=mesh.device)
    if lora is not None:
        share_factors(network)
    return network, objective


def set_weights(network: MaskPredictor, origin: Origin, mesh: Mesh, seed: int) -> None:
    """Gives a network the weights a new run starts with: those of `origin`, or random ones."""
    if not origin.is_trained:
        set_random_weights(network, mesh, seed)
        return
    set_adapters(network, mesh, seed)
    assert origin.folder is not None
    with contextlib.closing(open_folder(origin.folder)) as source:
        read_weights(dict(network.named_parameters()), source, mesh)


@torch.no_grad()
def set_random_weights(network: MaskPredictor, mesh: Mesh, seed: int) -> None:
    """Draws initial weights, the same on any mesh: every tensor from a generator of its own."""
    params = dict(network.named_parameters())
    for number, (name, entry, layer) in enumerate(placements(network.config)):
        generator = torch.Generator().manual_seed(seed << 20 | number)
        drawn = initial_tensor(network.config, entry, layer, generator)
        local(params[name]).copy_(drawn[rows_of(mesh, len(drawn))])


@torch.no_grad()
def set_adapters(network: MaskPredictor, mesh: Mesh, seed: int) -> None:
    """Gives the adapters of a network, if it has any, their first values; the same on any mesh."""
    for factor, value in initial_factors(network, seed):
        local(factor).copy_(torch.from_numpy(value[rows_of(mesh, len(value))]))


@torch.no_grad()
def read_weights(params: Mapping[str, Tensor], source: Source, mesh: Mesh) -> None:
    """Fills parameters (or tensors split like them) with this process's rows of the weights."""
    for name, entry, layer in placements(source.config):
        target = local(params[name])
        rows = rows_of(mesh, params[name].shape[0])
        kind = np.dtype(str(target.dtype).removeprefix("torch."))
        target.copy_(stored_tensor(source, entry, layer, rows=rows, dtype=kind))
