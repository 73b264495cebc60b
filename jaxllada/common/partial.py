"""A folder that takes long to write: built as `.NAME.partial`, resumed after a kill, then renamed.

Nothing that reads `NAME` ever sees a part of it. What is finished survives a kill, an interrupt or
a full disk, and the next attempt with the same source and settings goes on from there.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxllada.common.durable import sync
from jaxllada.common.errors import UserError
from jaxllada.common.manifest import write_atomically
from jaxllada.common.notices import notice

JOURNAL = ".journal.json"
# What the file system may take beside the bytes of the files.
_SLACK = 64 << 20
_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
}


def fingerprint(files: Mapping[str, Path]) -> str:
    """Digest of the names, sizes and times of files: another source gives another one."""
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        stat = path.stat()
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def partial_folder(
    path: Path, about: Mapping[str, Any], *, needed: int, overwrite: bool = False
) -> Iterator[Path]:
    """Yields the folder to fill; it becomes `path` when the block ends without an error.

    `about` (JSON values) says what is being written: an unfinished folder about the same is
    yielded again, any other is thrown away. `needed` is the size of the result in bytes. A folder
    that holds something is replaced only with `overwrite`, and only at the very end. Wrong input
    (`UserError`) leaves nothing behind.

    Raises:
        UserError: `path` is taken, its disk has too little room or fails, permission is denied,
            or another process is writing the same folder.
    """
    path = Path(os.path.realpath(path))
    work, old = (path.with_name(f".{path.name}.{end}") for end in ("partial", "replaced"))
    with _explained(path, work):
        if old.exists() and not path.exists():  # killed in the middle of _swap
            os.rename(old, path)
        check_free_name(path, overwrite=overwrite)
        work.mkdir(parents=True, exist_ok=True)
        with _locked(work):
            _prepare(work, about)
            try:
                _check_room(work, path, needed)
            except UserError:
                if not _has_something(work):
                    shutil.rmtree(work, ignore_errors=True)
                raise
            try:
                yield work
            except UserError:
                shutil.rmtree(work, ignore_errors=True)
                raise
            for file in (*work.rglob("*"), work):
                sync(file)
            _swap(work, path, old)


def check_free_name(path: Path, *, overwrite: bool = False) -> None:
    """Raises `UserError` unless `path` may become a new folder."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; expected the name of a new folder")
    if not overwrite and path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path}: exists and is not empty; choose another name or add --overwrite")


def _has_something(work: Path) -> bool:
    try:
        return any(not name.startswith(".") for name in os.listdir(work))
    except OSError:
        return False


def _prepare(work: Path, about: Mapping[str, Any]) -> None:
    """Keeps what an earlier attempt at the same has finished, and nothing else."""
    wanted = json.loads(json.dumps(about))
    journal = work / JOURNAL
    try:
        found = json.loads(journal.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found == wanted:
        notice(f"resuming from {work}")
        return
    for file in list(work.iterdir()):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    write_atomically(journal, json.dumps(wanted, indent=1).encode())


def _check_room(work: Path, path: Path, needed: int) -> None:
    done = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
    free, missing = shutil.disk_usage(work).free, max(0, needed - done)
    if missing and missing + _SLACK > free:
        raise UserError(
            f"{path}: needs {missing / 1e9:.2f} GB more, but its disk has {free / 1e9:.2f} GB free"
        )


@contextlib.contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Holds the folder for this process; the lock ends with the process."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    handle = os.open(work, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{work}: another process is writing it") from None
        # The process before us may have finished and renamed what we have opened.
        if not work.exists() or not os.path.samestat(os.fstat(handle), os.stat(work)):
            raise UserError(f"{work}: another process has just finished it")
        yield
    finally:
        os.close(handle)


def _swap(work: Path, path: Path, old: Path) -> None:
    """Puts `work` in the place of `path`; the journal goes last, so that a kill loses nothing."""
    if path.exists() and any(path.iterdir()):
        shutil.rmtree(old, ignore_errors=True)
        os.rename(path, old)
    os.rename(work, path)
    (path / JOURNAL).unlink()
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _explained(path: Path, work: Path) -> Iterator[None]:
    """Turns what the system says into one line for the user."""
    kept = f"what is finished is kept in {work}: the same command goes on from there"
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        place = f" ({error.filename})" if error.filename else ""
        hint = f"; {kept}" if _has_something(work) else ""
        raise UserError(f"{path}: {reason}{place}{hint}") from error
    except KeyboardInterrupt:
        notice(kept)
        raise
