"""The device mesh and where each weight lives on it.

Axes: `data` splits the batch, `fsdp` splits the batch and every matrix, `tensor` splits heads,
hidden units and the vocabulary (Megatron, arXiv:1909.08053). One device is a mesh of one. The rules
name weights by the end of their path, so that optimiser moments and averages follow their weight.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.errors import UserError

DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
BATCH = (DATA, FSDP)

# End of the path -> axes of one layer's weight. Weights of stacked blocks have a layer axis before.
_RULES: tuple[tuple[tuple[str, ...], P], ...] = (
    (("wte",), P(TENSOR, FSDP)),
    (("mlp", "ff_out", "kernel"), P(TENSOR, FSDP)),
    (("attn_out", "kernel"), P(TENSOR, FSDP)),
    (("ff_out", "weight"), P(TENSOR, FSDP)),
    (("q_proj", "kernel"), P(FSDP, TENSOR)),
    (("k_proj", "kernel"), P(FSDP, TENSOR)),
    (("v_proj", "kernel"), P(FSDP, TENSOR)),
    (("ff_proj", "kernel"), P(FSDP, TENSOR)),
    (("up_proj", "kernel"), P(FSDP, TENSOR)),
    # Of adapters [rank, in] and [out, rank], the sides as wide as the model.
    (("q_proj", "lora_a"), P(None, FSDP)),
    (("k_proj", "lora_a"), P(None, FSDP)),
    (("v_proj", "lora_a"), P(None, FSDP)),
    (("ff_proj", "lora_a"), P(None, FSDP)),
    (("up_proj", "lora_a"), P(None, FSDP)),
    (("attn_out", "lora_b"), P(FSDP, None)),
    (("ff_out", "lora_b"), P(FSDP, None)),
)


def initialize_distributed(
    coordinator_address: str = "", num_processes: int = 1, process_id: int = -1
) -> None:
    """Joins the processes of a run; must come before anything touches a device.

    One process needs nothing. With `num_processes=-1` the cluster manager (SLURM, Cloud TPU, ...)
    is asked for all three values; otherwise they are what the flags say.
    """
    if num_processes == 1:
        return
    if num_processes == -1:
        jax.distributed.initialize()
        return
    if not coordinator_address or not 0 <= process_id < num_processes:
        raise UserError(
            f"num_processes={num_processes}: give coordinator_address=HOST:PORT and a process_id "
            f"from 0 to {num_processes - 1} (now {coordinator_address!r} and {process_id})"
        )
    jax.distributed.initialize(coordinator_address, num_processes, process_id)


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """Arranges the devices; `data=-1` takes all that the other two axes leave."""
    devices = jax.devices() if devices is None else list(devices)
    asked = f"mesh_data={data} x mesh_fsdp={fsdp} x mesh_tensor={tensor}"
    if data == -1:
        data = max(1, len(devices) // (fsdp * tensor))
    if data * fsdp * tensor != len(devices):
        raise UserError(f"{asked}: does not fill the {len(devices)} devices of this run")
    shape = (data, fsdp, tensor)
    types = (AxisType.Auto,) * 3
    return jax.make_mesh(shape, (DATA, FSDP, TENSOR), axis_types=types, devices=devices)


def check_divides(mesh: Mesh, config: ModelConfig) -> None:
    """Refuses a mesh whose axes do not divide the widths they split."""
    sizes = dict(mesh.shape)
    splits = [
        (TENSOR, "n_heads", config.n_heads),
        (TENSOR, "n_kv_heads", config.kv_heads),
        (TENSOR, "mlp_hidden_size", config.ffn_width),
        (TENSOR, "embedding_size", config.rows),
        (FSDP, "d_model", config.d_model),
    ]
    for axis, key, width in splits:
        if width % sizes[axis]:
            raise UserError(f"mesh_{axis}={sizes[axis]}: does not divide {key}={width}")


def spec_of(names: Sequence[str], ndim: int) -> P:
    """PartitionSpec of the weight (or moment) at a path; norms, biases and counters are copied."""
    for ending, spec in _RULES:
        if tuple(names[-len(ending) :]) == ending and ndim >= len(spec):
            return P(*[None] * (ndim - len(spec)), *spec)
    return P()


def shardings(mesh: Mesh, tree: Any) -> Any:
    """NamedSharding of every leaf of a tree of arrays or shapes."""

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [str(getattr(part, "key", getattr(part, "name", part))) for part in path]
        return NamedSharding(mesh, spec_of(names, len(leaf.shape)))

    return jax.tree_util.tree_map_with_path(place, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, P())


def batch_shards(mesh: Mesh) -> int:
    """Number of parts the rows of a batch are split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def process_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process feeds part `index` of `count` equal parts of the batch rows."""
    parts = batch_shards(mesh)
    sharding = NamedSharding(mesh, P(BATCH))
    slices = sharding.addressable_devices_indices_map((parts,)).values()
    mine = sorted({part[0].indices(parts)[0] for part in slices if part is not None})
    if parts % len(mine) or mine != list(range(mine[0], mine[0] + len(mine))):
        raise UserError(f"mesh {dict(mesh.shape)}: a process would feed the rows {mine} of {parts}")
    return mine[0] // len(mine), parts // len(mine)


def global_batch(mesh: Mesh, local: Any, *, axis: int = 0) -> Any:
    """Joins the rows of all processes into global arrays split over `data` and `fsdp`.

    `local` is a pytree of NumPy arrays whose rows lie on `axis`: [A, B, L] arrays take axis 1.
    """
    _, count = process_share(mesh)

    def place(array: np.ndarray) -> jax.Array:
        shape = list(array.shape)
        shape[axis] *= count
        sharding = NamedSharding(mesh, P(*[None] * axis, BATCH))
        return jax.make_array_from_process_local_data(sharding, array, tuple(shape))

    return jax.tree.map(place, local)
