"""The device mesh and where each weight lives on it.

Axes: `data` splits the batch, `fsdp` splits the batch and every weight (FSDP2's `fully_shard`, one
group a block). With `data` alone every device holds all weights (DistributedDataParallel); both
together are hybrid sharding. One process is a mesh of one. The processes are those of torchrun.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.errors import UserError
from npu_backend.device import find_device

DATA, FSDP = "data", "fsdp"
_COLLECTIVES = {"npu": "hccl", "cuda": "nccl"}
# Above HCCL_EXEC_TIMEOUT (1836 s by default), so that HCCL reports a lost rank before torch does.
_TIMEOUT = timedelta(minutes=40)


@dataclasses.dataclass(frozen=True)
class Mesh:
    """The devices of a run, data x fsdp of them, seen from one process.

    `layout` is None in a run of one process.
    """

    device: torch.device
    data: int = 1
    fsdp: int = 1
    rank: int = 0
    layout: DeviceMesh | None = None

    @property
    def size(self) -> int:
        """Number of processes; every one holds one device and feeds rows of its own."""
        return self.data * self.fsdp

    @property
    def is_main(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0

    @property
    def is_sharded(self) -> bool:
        """Whether weights are split."""
        return self.layout is not None and self.fsdp > 1


def initialize_distributed(
    device: str, coordinator_address: str = "", num_processes: int = 1, process_id: int = -1
) -> torch.device:
    """Joins the processes of a run and returns the device of this one, of the kind `device`.

    torchrun says through the environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR) who they are;
    without it, `num_processes` processes meet at `coordinator_address`. CPU tensors travel over
    gloo, those of the device over its own collectives.
    """
    if "RANK" not in os.environ and num_processes != 1:
        host, _, port = coordinator_address.rpartition(":")
        if not (host and port.isdecimal()) or not 0 <= process_id < num_processes:
            raise UserError(
                f"num_processes={num_processes}: start the run with torchrun "
                "(launch/npu_train.sh), or give coordinator_address=HOST:PORT and a process_id "
                f"from 0 to {max(1, num_processes) - 1} (now {coordinator_address!r} and "
                f"{process_id})"
            )
        names = {"MASTER_ADDR": host, "MASTER_PORT": port, "RANK": str(process_id)}
        os.environ.update(names | {"WORLD_SIZE": str(num_processes)})
        os.environ.setdefault("LOCAL_RANK", str(process_id))
    own = find_device(device)
    if "RANK" in os.environ and not dist.is_initialized():
        other = _COLLECTIVES.get(own.type)
        backend = f"cpu:gloo,{own.type}:{other}" if other else "cpu:gloo"
        dist.init_process_group(backend, timeout=_TIMEOUT)
    return own


def make_mesh(device: torch.device, data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """Arranges the processes; `data=-1` takes all that the other axis leaves."""
    if tensor != 1:
        raise UserError(
            f"mesh_tensor={tensor}: this backend splits weights with mesh_fsdp only; leave it at 1"
        )
    processes = dist.get_world_size() if dist.is_initialized() else 1
    asked = f"mesh_data={data} x mesh_fsdp={fsdp}"
    if data == -1:
        data = max(1, processes // fsdp)
    if data * fsdp != processes:
        raise UserError(f"{asked}: does not fill the {processes} devices of this run")
    if processes == 1:
        return Mesh(device)
    layout = init_device_mesh(device.type, (data, fsdp), mesh_dim_names=(DATA, FSDP))
    return Mesh(device, data, fsdp, dist.get_rank(), layout)


def shard(
    module: nn.Module, blocks: Sequence[nn.Module], mesh: Mesh, compute: ComputeConfig
) -> Any:
    """Returns `module` ready to train on the mesh, its `blocks` as units of their own.

    Split weights travel in the activation type, as the forward pass would round them anyway, but
    those of norms in float32. Gradients are summed in float32. Both wrappers divide them by the
    number of processes, so the loss has to be multiplied by it.
    """
    if mesh.layout is None:
        return module
    if not mesh.is_sharded:
        ids = None if mesh.device.type == "cpu" else [mesh.device]
        group = mesh.layout[DATA].get_group()
        return DistributedDataParallel(
            module,
            device_ids=ids,
            process_group=group,
            init_sync=False,  # every process fills in the same weights itself
            gradient_as_bucket_view=True,
        )
    layout = mesh.layout if mesh.data > 1 else mesh.layout[FSDP]
    # Inputs are left alone: among those of a block are the float32 rotary angles.
    whole = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    dtype = getattr(torch, compute.dtype)
    policy = dataclasses.replace(whole, param_dtype=dtype)
    for part in module.modules():
        if "norm" in type(part).__name__.lower() and next(part.parameters(False), None) is not None:
            fully_shard(part, mesh=layout, mp_policy=whole, reshard_after_forward=False)
    for block in blocks:
        fully_shard(block, mesh=layout, mp_policy=policy)
    fully_shard(module, mesh=layout, mp_policy=policy)
    if mesh.device.type == "cpu":  # gloo adds, but cannot average
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.set_force_sum_reduction_for_comms(True)
    return module


@contextlib.contextmanager
def one_first(mesh: Mesh) -> Iterator[None]:
    """Runs its block on one process of each machine, and then, with what that left, on the others.

    For preparing data, which may take hours; nobody waits in vain for a process that fails.
    """
    if mesh.layout is None:
        yield
        return
    patient: Any = dist.new_group(backend="gloo", timeout=timedelta(days=7))
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if not is_first:
        dist.barrier(patient)
    yield
    if is_first:
        dist.barrier(patient)


@contextlib.contextmanager
def without_sync(module: nn.Module) -> Iterator[None]:
    """Gradients of a micro-batch that is not the last stay on the device, where all are whole.

    Split gradients are always summed at once: whole ones would not fit beside the weights.
    """
    if isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
    else:
        yield


def forget_whole(module: nn.Module) -> None:
    """Drops gathered weights, which else serve the next forward pass even if their parts change."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def rows_of(mesh: Mesh, length: int) -> slice:
    """The rows of a weight of `length` rows that this process holds."""
    if not mesh.is_sharded:
        return slice(0, length)
    size, index = -(-length // mesh.fsdp), mesh.rank % mesh.fsdp
    return slice(min(length, size * index), min(length, size * (index + 1)))


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor, gathered on every process; all have to call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def sum_over(mesh: Mesh, tensor: Tensor) -> Tensor:
    """Sums a tensor of the device over all processes, in place."""
    if mesh.layout is not None:
        dist.all_reduce(tensor)
    return tensor


def join_rows(mesh: Mesh, tensor: Tensor) -> Tensor:
    """Joins [n, ...] of every process along the first axis, in the order of their ranks."""
    if mesh.layout is None:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(mesh.size)]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def largest(number: int) -> int:
    """The largest number any process gives."""
    if not dist.is_initialized():
        return number
    value = torch.tensor(number)  # on the CPU: over gloo
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def meet() -> None:
    """Returns when every process has called it."""
    largest(0)
