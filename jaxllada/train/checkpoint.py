"""Checkpoints of a run: written by orbax in the background, sealed by a manifest, kept by rule.

A checkpoint is `checkpoints/{step}`. Orbax writes the arrays into a temporary folder and renames
it; then one thread hashes the files and writes the manifest, the last act. What has no manifest,
or disagrees with it, is named in a warning and passed over.
"""

import dataclasses
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jaxllada.common.errors import UserError
from jaxllada.common.manifest import fault, read_meta, step_folders, update_meta, write_manifest
from jaxllada.common.notices import warn
from jaxllada.train.state import TrainState

Meta = dict[str, Any]


class Checkpoints:
    """The checkpoints of one run folder.

    `keep` newest are kept (0: all), and with `keep_best` also the one with the lowest `metric`.
    Every process of a run calls the same methods; process 0 alone writes manifests and deletes.
    """

    def __init__(self, folder: str | Path, *, keep: int = 0, keep_best: bool = False):
        self.folder = Path(folder).absolute()
        self.keep, self.keep_best = keep, keep_best
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, step: int, state: TrainState, meta: Meta, metric: float | None = None) -> None:
        """Starts to write `state`; returns when it may be donated, long before all is on disk.

        `meta` is JSON and carries what is not an array. Waits for the checkpoint before this one.
        """
        self.wait()
        path = self.folder / str(step)
        if jax.process_index() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(path, ignore_errors=True)
        response = ocp.save_checkpointables_async(str(path), _parts(state))
        meta = {**meta, "step": step, "metric": metric}
        self._pending = self._thread.submit(self._finish, response, path, meta)

    def _finish(self, response: Any, path: Path, meta: Meta) -> None:
        response.result()
        if jax.process_index() == 0:
            write_manifest(path, meta)
            self._delete_old(meta["step"])

    def _delete_old(self, step: int) -> None:
        folders = {n: path for n, path in step_folders(self.folder).items() if n <= step}
        sound = {n: path for n, path in folders.items() if not fault(path, hashes=False)}
        kept = set(sorted(sound)[-self.keep :])
        metrics = {n: read_meta(path)["metric"] for n, path in sound.items()}
        scored = {n: metric for n, metric in metrics.items() if metric is not None}
        if self.keep_best and scored:
            kept.add(min(scored, key=lambda n: (scored[n], n)))
        for n, path in folders.items():
            if n not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def wait(self) -> None:
        """Returns when the last save is complete everywhere; raises what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("checkpoint complete")

    def close(self) -> None:
        """Waits and stops the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def latest(self, accepts: Callable[[Meta], bool] = lambda _: True) -> int | None:
        """Step of the newest sound checkpoint whose meta data `accepts` takes.

        Warns about every newer one that is not sound. Process 0 looks and tells the others.
        """
        found = self._latest(accepts) if jax.process_index() == 0 else -1
        if jax.process_count() > 1:
            found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
        return None if found < 0 else found

    def _latest(self, accepts: Callable[[Meta], bool]) -> int:
        for step, path in sorted(step_folders(self.folder).items(), reverse=True):
            if why := fault(path):
                warn(f"skipping checkpoint {path}: {why}")
            elif accepts(read_meta(path)):
                return step
        return -1

    def meta(self, step: int) -> Meta:
        """What `save` was given beside the arrays."""
        return read_meta(self.folder / str(step))

    def update_meta(self, step: int, meta: Meta) -> None:
        """Replaces entries of a saved checkpoint's meta data."""
        if jax.process_index() == 0:
            update_meta(self.folder / str(step), {**self.meta(step), **meta})

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

    def set_aside_after(self, step: int) -> None:
        """Renames checkpoints newer than `step`: the run goes on from there on another path."""
        if jax.process_index() == 0:
            for number, path in step_folders(self.folder).items():
                if number > step:
                    target = path.with_name(f"{path.name}.before-return-to-{step}")
                    shutil.rmtree(target, ignore_errors=True)
                    path.rename(target)


def _parts(state: TrainState) -> dict[str, Any]:
    """Cuts the state into what can be read on its own: params, ema, all else."""
    names = [field.name for field in dataclasses.fields(state)]
    rest = {name: getattr(state, name) for name in names if name not in ("params", "ema")}
    parts = {"params": state.params, "optimizer": rest}
    return parts if state.ema is None else {**parts, "ema": state.ema}
