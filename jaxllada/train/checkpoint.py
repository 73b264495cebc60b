"""The arrays of a checkpoint as orbax writes them, in the background, and reads them on any mesh.

Orbax writes into a temporary folder and renames it; `common/run/checkpoints.py` does the rest. A
run that trains adapters has its PEFT files beside these arrays, which hold no frozen weights.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jaxllada.common.errors import UserError
from jaxllada.common.run import checkpoints
from jaxllada.common.weights.adapter import Adapter
from jaxllada.common.weights.peft import AdapterFiles
from jaxllada.models.lora import adapter_of
from jaxllada.train.state import TrainState

_CHUNK_BYTES = 64 << 20


class Checkpoints(checkpoints.Checkpoints):
    """The checkpoints of one run folder, written by orbax."""

    @property
    def is_main(self) -> bool:
        return jax.process_index() == 0

    def write(self, path: Path, state: TrainState) -> Callable[[], None]:
        """Copies `state` to the host; the rest happens behind the next steps."""
        context = ocp.Context()
        context.array.saving.scoped_storage_options_creator = _chunks
        with context:
            response = ocp.save_checkpointables_async(str(path), _parts(state))
        adapter = None if self.adapter is None else _factors(state, self.adapter)

        def finish() -> None:
            response.result()
            if self.is_main and self.adapter is not None and adapter is not None:
                self.adapter.write(path, adapter)

        return finish

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads a checkpoint into the shapes, types and shardings of `like`.

        `like` holds arrays or `jax.ShapeDtypeStruct`s with shardings, of any mesh: this is how a
        run moves to other devices.
        """
        path = self.folder / str(step)
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            _parts(like),
        )
        try:
            parts = ocp.load_checkpointables(str(path), target)
        except (ValueError, KeyError) as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(f"{path} does not fit this run: {first}") from error
        params, ema, rest = parts["params"], parts.get("ema"), parts["optimizer"]
        return dataclasses.replace(like, params=params, ema=ema, **rest)

    def meet(self) -> None:
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoint complete")

    def broadcast(self, number: int) -> int:
        if jax.process_count() > 1:
            return int(multihost_utils.broadcast_one_to_all(np.int32(number)))
        return number


def _factors(state: TrainState, files: AdapterFiles) -> Adapter:
    """Copies the adapters that are measured and sampled from to the host of every process."""
    served = state.params if state.ema is None else state.ema
    if jax.process_count() > 1:
        served = multihost_utils.process_allgather(served, tiled=True)
    copies = jax.tree.map(lambda leaf: np.array(leaf, np.float32), served)
    return adapter_of(copies, files.lora, files.model)


def _chunks(key: Any, value: Any) -> Any:
    """Cuts large stacked weights by layer, so that one layer can be read without the others."""
    if getattr(value, "nbytes", 0) <= _CHUNK_BYTES:
        return None
    is_stacked = any(getattr(part, "key", getattr(part, "name", "")) == "blocks" for part in key)
    return ocp.options.ArrayOptions.Saving.StorageOptions(
        chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if is_stacked else None
    )


def _parts(state: TrainState) -> dict[str, Any]:
    """Cuts the state into what can be read on its own: params, ema, all else."""
    names = [field.name for field in dataclasses.fields(state)]
    rest = {name: getattr(state, name) for name in names if name not in ("params", "ema")}
    parts = {"params": state.params, "optimizer": rest}
    return parts if state.ema is None else {**parts, "ema": state.ema}
