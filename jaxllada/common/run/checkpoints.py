"""The checkpoints of a run: found, sealed by a manifest, kept by rule, whoever wrote the arrays.

A checkpoint is `checkpoints/{step}`. A backend writes its arrays; then one thread hashes the files
and writes the manifest, the last act. What has no manifest, or disagrees with it, is named in a
warning and passed over.
"""

import abc
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxllada.common.errors import UserError
from jaxllada.common.manifest import fault, read_meta, step_folders, update_meta, write_manifest
from jaxllada.common.notices import warn

CHECKPOINTS = "checkpoints"
Meta = dict[str, Any]


def is_run_folder(path: str | Path) -> bool:
    """Whether `path` is the output_dir of a run that has saved something."""
    return bool(step_folders(Path(path) / CHECKPOINTS))


def sound_checkpoint(run_folder: str | Path, step: int | None = None) -> Path:
    """Returns the folder of a checkpoint: the newest sound one, or that of `step`.

    Warns about every newer one that is not sound. Raises UserError where nothing is left.
    """
    folders = step_folders(Path(run_folder) / CHECKPOINTS)
    if step is not None and step not in folders:
        listed = ", ".join(map(str, folders)) or "none"
        raise UserError(f"step={step}: no such checkpoint in {run_folder} (there: {listed})")
    for number in [step] if step is not None else sorted(folders, reverse=True):
        if why := fault(folders[number]):
            warn(f"skipping checkpoint {folders[number]}: {why}")
            continue
        return folders[number]
    raise UserError(f"{run_folder}: holds no sound checkpoint")


class Checkpoints(abc.ABC):
    """The checkpoints of one run folder; a backend says how arrays are written and read.

    `keep` newest are kept (0: all), and with `keep_best` also the one with the lowest `metric`.
    Every process of a run calls the same methods; process 0 alone writes manifests and deletes.
    `adapter` holds the `AdapterFiles` of a run that trains an adapter: its checkpoints are then
    adapter folders as well.
    """

    adapter: Any = None

    def __init__(self, folder: str | Path, *, keep: int = 0, keep_best: bool = False):
        self.folder = Path(folder).absolute()
        self.keep, self.keep_best = keep, keep_best
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    @property
    @abc.abstractmethod
    def is_main(self) -> bool:
        """Whether this is process 0."""

    @abc.abstractmethod
    def write(self, path: Path, state: Any) -> Callable[[], None]:
        """Starts to write the arrays of `state` into the folder `path`, which does not exist.

        Returns when `state` may change. What it returns waits until all processes have written,
        and runs in a thread.
        """

    @abc.abstractmethod
    def restore(self, step: int, like: Any) -> Any:
        """Reads the arrays of a checkpoint into the shapes, types and places of `like`."""

    @abc.abstractmethod
    def meet(self) -> None:
        """Returns when every process has called it."""

    @abc.abstractmethod
    def broadcast(self, number: int) -> int:
        """Returns the number process 0 gave, on every process."""

    def save(self, step: int, state: Any, meta: Meta, metric: float | None = None) -> None:
        """Starts to write `state`; returns when it may change, long before all is on disk.

        `meta` is JSON and carries what is not an array. Waits for the checkpoint before this one.
        """
        self.wait()
        path = self.folder / str(step)
        if self.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(path, ignore_errors=True)
        finish = self.write(path, state)
        meta = {**meta, "step": step, "metric": metric}
        self._pending = self._thread.submit(self._finish, finish, path, meta)

    def _finish(self, finish: Callable[[], None], path: Path, meta: Meta) -> None:
        finish()
        if self.is_main:
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
            self.meet()

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
        found = self.broadcast(self._latest(accepts) if self.is_main else -1)
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
        if self.is_main:
            update_meta(self.folder / str(step), {**self.meta(step), **meta})

    def set_aside_after(self, step: int) -> None:
        """Renames checkpoints newer than `step`: the run goes on from there on another path."""
        if self.is_main:
            for number, path in step_folders(self.folder).items():
                if number > step:
                    target = path.with_name(f"{path.name}.before-return-to-{step}")
                    shutil.rmtree(target, ignore_errors=True)
                    path.rename(target)
