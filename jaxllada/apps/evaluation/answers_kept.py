"""Answers that are kept on the disk as they come, so that a run which was cut goes on.

The folder holds append-only files of JSON lines, one file for each process that writes: parts of
one evaluation and earlier runs read each other's. An answer is found by a key, the hash of
everything that determines it. A line that a killed process left unfinished is dropped.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from jaxllada.common.errors import UserError
from jaxllada.common.notices import warn

Record = Mapping[str, Any]
"""What is kept of one answer, as JSON."""


def key_of(*parts: Any) -> str:
    """The hash of JSON values; equal for equal parts, on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class KeptAnswers:
    """Answers by key: those in the files of `folder`, and those that are added.

    Without a folder they are kept in memory alone. `name` is that of the file this process appends
    to; no other process may write it at the same time.
    """

    def __init__(self, folder: Path | None = None, name: str = "answers"):
        self.folder, self._name = folder, name
        self._records: dict[str, Record] = {}
        self._read_to: dict[Path, int] = {}
        self._file: BinaryIO | None = None
        self.refresh()

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __getitem__(self, key: str) -> Record:
        return self._records[key]

    def refresh(self) -> None:
        """Reads what other processes have written since."""
        if self.folder is None:
            return
        for path in sorted(self.folder.glob("*.jsonl")):
            self._read(path)

    def _read(self, path: Path) -> None:
        with path.open("rb") as file:
            file.seek(self._read_to.get(path, 0))
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]  # a line without an end may still be written
        self._read_to[path] = self._read_to.get(path, 0) + len(whole)
        broken = 0
        for line in whole.splitlines():
            try:
                entry = json.loads(line)
                self._records[entry.pop("key")] = entry
            except (ValueError, KeyError, AttributeError, TypeError):
                broken += 1
        if broken:
            warn(f"{path}: {broken} damaged lines are passed over, their requests asked again")

    def add(self, records: Mapping[str, Record]) -> None:
        """Keeps answers, with one write for all of them."""
        self._records.update(records)
        if self.folder is None or not records:
            return
        lines = [
            json.dumps({"key": key, **record}, ensure_ascii=False)
            for key, record in records.items()
        ]
        file = self._open()
        file.write(("\n".join(lines) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())

    def _open(self) -> BinaryIO:
        if self._file is None:
            assert self.folder is not None
            path = self.folder / f"{self._name}.jsonl"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = path.open("ab+")
            except OSError as error:
                raise UserError(f"output={self.folder.parent}: {error.strerror}") from None
            _lock(self._file, path)
            _drop_torn_line(self._file)
        return self._file

    def close(self) -> None:
        """Closes the file of this process; what was added stays readable here."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _drop_torn_line(file: BinaryIO) -> None:
    """Cuts off the line that a killed process began, so that the next answer has one of its own."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    end, place = 0, 0
    while chunk := file.read(1 << 20):
        last = chunk.rfind(b"\n")
        end = place + last + 1 if last >= 0 else end
        place += len(chunk)
    if end < size:
        file.truncate(end)


def _lock(file: BinaryIO, path: Path) -> None:
    """Raises `UserError` where another process appends to the same file."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{path} is being written by another process: give it another output, or share the"
            " work with part=i/n"
        ) from None
    except OSError:  # a network file system without locks
        return
