"""The on-disk cache of tokenised data: `{cache_dir}/tokens-{hash of what made it}`.

A folder holds NumPy arrays and `made_from.json`: what it was made from and a seal of every array.
It appears whole or not at all; one that does not agree with its seals is built again.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxllada.common.data.files import new_folder
from jaxllada.common.manifest import write_atomically

_VERSION = 1
_BLOCK, _BLOCKS = 1 << 16, 256
_NOTE = "made_from.json"

log = logging.getLogger(__name__)


def default_folder() -> Path:
    """Returns $JAXLLADA_CACHE, or ~/.cache/jaxllada."""
    return Path(os.environ.get("JAXLLADA_CACHE") or Path.home() / ".cache" / "jaxllada")


def content_name(prefix: str, made_from: Any) -> str:
    """Names a cache entry by the hash of what it is made from (JSON values)."""
    text = json.dumps([_VERSION, made_from], sort_keys=True)
    return f"{prefix}-{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"


def cached(
    folder: Path, made_from: dict[str, Any], build: Callable[[Path], dict[str, Any]]
) -> tuple[Path, dict[str, Any]]:
    """Returns the cache folder of `made_from` and its facts, building it where it is missing.

    `made_from` are JSON values that decide the content. `build` fills the empty folder it is given
    with .npy files (also in folders below it) and returns facts (JSON values) to keep beside them.
    """
    path = folder / content_name("tokens", made_from)
    if path.exists():
        facts = _sound(path)
        if facts is not None:
            return path, facts
        log.warning("%s is damaged or incomplete; building it again", path)
        shutil.rmtree(path)
    with new_folder(path) as work:
        facts = build(work)
        seals = {name: _seal(work / name) for name in _arrays(work)}
        note = {"made_from": made_from, "facts": facts, "seals": seals}
        write_atomically(work / _NOTE, json.dumps(note, indent=1).encode())
    return path, facts


def _sound(path: Path) -> dict[str, Any] | None:
    """Returns the facts of a folder whose arrays agree with their seals."""
    try:
        note = json.loads((path / _NOTE).read_text(encoding="utf-8"))
        if _arrays(path) != sorted(note["seals"]):
            return None
        if any(_seal(path / name) != seal for name, seal in note["seals"].items()):
            return None
        return note["facts"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _arrays(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.npy"))


def _seal(file: Path) -> list[Any]:
    """Size and hash of a file. Of a file above 16 MiB 256 evenly spread blocks are hashed, the
    first and the last among them, so that checking a large cache stays quick."""
    size = file.stat().st_size
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as data:
        if size <= _BLOCK * _BLOCKS:
            digest.update(data.read())
        else:
            for i in range(_BLOCKS):
                data.seek((size - _BLOCK) * i // (_BLOCKS - 1))
                digest.update(data.read(_BLOCK))
    return [size, digest.hexdigest()]


class ArrayWriter:
    """Appends rows to a .npy file whose length is known only at the end."""

    def __init__(self, path: Path, dtype: Any, width: int | None = None):
        self.dtype, self.width, self.count = np.dtype(dtype), width, 0
        self._file = path.open("wb")
        self._write_header()

    def _write_header(self) -> None:
        shape = (self.count,) if self.width is None else (self.count, self.width)
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        # NumPy leaves room in the header for the first axis to grow.
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, rows: np.ndarray) -> None:
        """Writes rows of the file's width (or single numbers)."""
        self._file.write(np.ascontiguousarray(rows, self.dtype).tobytes())
        self.count += len(rows)

    def close(self) -> None:
        """Writes the final length and closes the file."""
        end = self._file.tell()
        self._file.seek(0)
        self._write_header()
        self._file.seek(end)
        self._file.close()
