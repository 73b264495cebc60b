"""The arrays of a checkpoint: a model folder, and the training state inside it.

    {step}/config.json, model*.safetensors   the weights (their average, where one is kept)
    {step}/state/                            optimiser, counters, and the weights behind an average
    {step}/manifest.json                     written last

The folder is a model for every loader. A run that trains adapters has their PEFT files in the place
of the weights. Weights are gathered tensor by tensor and each process keeps
and writes files of its own; `state/` is torch.distributed.checkpoint, split as the state is. So a
run may go on with another number of processes. Files are written behind the next steps, from copies
on the host.
"""

import collections
import dataclasses
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import async_save

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.errors import UserError
from jaxllada.common.run import checkpoints
from jaxllada.common.tokenizer import Tokenizer
from jaxllada.common.weights import shards
from jaxllada.common.weights.adapter import Adapter
from jaxllada.common.weights.index import INDEX, write_json
from jaxllada.common.weights.layouts import own_layout
from jaxllada.common.weights.opening import open_folder
from jaxllada.common.weights.peft import AdapterFiles
from npu_backend.arrays import numpy_view
from npu_backend.models.lora import adapter_of
from npu_backend.models.names import parameter_name
from npu_backend.sharding import Mesh, largest, meet, whole
from npu_backend.train.optim import Tensors
from npu_backend.train.start import read_weights
from npu_backend.train.state import TrainState

STATE = "state"
_SHARD_BYTES = 5 * 10**9
_COUNTERS = ("step", "count", "skipped", "skipped_total")


class Checkpoints(checkpoints.Checkpoints):
    """The checkpoints of one run folder; `place` says of which model and over which devices."""

    _mesh: Mesh
    _model: ModelConfig
    _tokenizer: Tokenizer | None = None
    _group: Any = None

    def place(self, mesh: Mesh, model: ModelConfig, tokenizer: Tokenizer | None = None) -> None:
        """Has to be called before arrays are written or read, and by all processes."""
        self._mesh, self._model, self._tokenizer = mesh, model, tokenizer
        # Said at every save of a run of one process, where nothing is wrong.
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        if dist.is_initialized() and self._group is None:
            # A group of its own for the thread that writes: its orders never mix with others.
            self._group = dist.new_group(backend="gloo")

    @property
    def is_main(self) -> bool:
        return not dist.is_initialized() or dist.get_rank() == 0

    def write(self, path: Path, state: TrainState) -> Callable[[], None]:
        """Copies `state` to the host; the rest happens behind the next steps."""
        partial = path.with_name(f".{path.name}.partial")
        if self.is_main:
            for left in path.parent.glob(".*.partial"):  # of a run that was killed
                shutil.rmtree(left)
            partial.mkdir()
        meet()
        plan = self._planned(state) if self.adapter is None else []
        adapter = None if self.adapter is None else _factors(state, self.adapter)
        own = []
        for number, shard in enumerate(plan):
            if number % self._mesh.size == self._mesh.rank:
                own.append(self._copied(shard, state))
            elif self._mesh.is_sharded:  # all processes take part in gathering
                collections.deque(self._gathered(shard, state), maxlen=0)
        target = str(partial / STATE)
        parts = _parts(state, is_adapter=self.adapter is not None)
        pending = async_save(parts, checkpoint_id=target, **self._processes())
        assert isinstance(pending, Future)

        def finish() -> None:
            for shard in own:
                shards.write_shards(partial, [shard])
            pending.result()
            if self.is_main and self.adapter is not None and adapter is not None:
                self.adapter.write(partial, adapter)
            elif self.is_main:
                self._describe(partial, plan)
            if self._group is not None:
                dist.barrier(self._group)
            if self.is_main:
                os.replace(partial, path)

        return finish

    def _processes(self) -> dict[str, Any]:
        return {"process_group": self._group} if self._group is not None else {"no_dist": True}

    def _planned(self, state: TrainState) -> list[shards.Shard]:
        """The files of the model folder, at least one a process where there is enough to write."""
        weights = _served(state)
        kind = numpy_view(torch.empty(0, dtype=next(iter(weights.values())).dtype)).dtype
        tensors = [
            shards.Tensor(tensor.name, kind, tensor.shape, lambda: ())
            for tensor in own_layout(self._model).tensors(self._model)
        ]
        total = sum(tensor.nbytes for tensor in tensors)
        return shards.plan_shards(tensors, min(_SHARD_BYTES, -(-total // self._mesh.size)))

    def _gathered(self, shard: shards.Shard, state: TrainState) -> Iterator[list[Tensor]]:
        """Yields the parts of each tensor of a file."""
        weights = _served(state)
        stored = {
            tensor.name: tensor.parts for tensor in own_layout(self._model).tensors(self._model)
        }
        for tensor in shard.tensors:
            yield [
                whole(weights[parameter_name(self._model, *part)]) for part in stored[tensor.name]
            ]

    def _copied(self, shard: shards.Shard, state: TrainState) -> shards.Shard:
        """Keeps the tensors of a file on the host."""
        tensors = []
        for tensor, parts in zip(shard.tensors, self._gathered(shard, state), strict=True):
            arrays = [numpy_view(_host_copy(part)) for part in parts]
            tensors.append(dataclasses.replace(tensor, read=lambda arrays=arrays: arrays))
        return dataclasses.replace(shard, tensors=tuple(tensors))

    def _describe(self, folder: Path, plan: list[shards.Shard]) -> None:
        """Writes what makes a folder of tensors a model folder, config.json last."""
        if len(plan) > 1:
            table = {tensor.name: shard.file for shard in plan for tensor in shard.tensors}
            total = sum(shard.nbytes for shard in plan)
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(table.items()))}
            write_json(folder / INDEX, index)
        if self._tokenizer is not None:
            self._tokenizer.save(folder)
        self._model.save(folder)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Fills `like`, split in any way, with what a checkpoint holds."""
        path = self.folder / str(step)
        if not (path / STATE).is_dir():
            raise UserError(f"{path}: was not written by this backend")
        parts = _parts(like, is_adapter=self.adapter is not None)
        try:
            load_state(parts, checkpoint_id=str(path / STATE), **self._processes())
        except (CheckpointException, RuntimeError, ValueError, KeyError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path} does not fit this run: {first}") from error
        if self.adapter is None:
            read_weights(_served(like), open_folder(path), self._mesh)
        for name in _COUNTERS:
            setattr(like, name, int(parts["counters"][name]))
        return like

    def meet(self) -> None:
        meet()

    def broadcast(self, number: int) -> int:
        return largest(number if self.is_main else -1)


def _served(state: TrainState) -> Tensors:
    """The weights that are measured and sampled from, and exported."""
    return dict(state.params) if state.ema is None else state.ema


def _factors(state: TrainState, files: AdapterFiles) -> Adapter:
    """Copies the adapters that are measured and sampled from to the host of every process."""
    served = {name: whole(tensor) for name, tensor in _served(state).items()}
    return adapter_of(served, files.lora, files.model)


def _parts(state: TrainState, *, is_adapter: bool) -> dict[str, Any]:
    """What goes into `state/`: everything the model folder does not hold; of adapters, all."""
    counters = {name: torch.tensor(getattr(state, name)) for name in _COUNTERS}
    parts: dict[str, Any] = {"mu": state.mu, "nu": state.nu, "counters": counters}
    if state.ema is not None or is_adapter:
        parts["params"] = {name: param.detach() for name, param in state.params.items()}
    if state.ema is not None and is_adapter:
        parts["ema"] = state.ema
    return parts


def _host_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
