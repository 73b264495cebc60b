"""Where rows come from: save_to_disk folders, files, the Hub and the interpreter's own text.

A source has splits; `parts` turns them into a train and a test part that never share a row.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxllada.common.data import pystdlib
from jaxllada.common.data.data_files import BUILDERS, TEST_NAMES, by_split, data_files, is_saved
from jaxllada.common.data.grammar import SourceSpec, located
from jaxllada.common.data.json_lines import can_read, places
from jaxllada.common.data.parts import Part, chosen, part_of, window
from jaxllada.common.data.tables import PYSTDLIB, Origin, open_tables
from jaxllada.common.errors import UserError, nearest

_DEFAULT_TEST = 20  # every twentieth row


class Source:
    """One item of `dataset_args`, opened when its parts are asked for."""

    def __init__(self, spec: SourceSpec, *, preprocessed: bool = False):
        self.spec, self.path = spec, Path(located(spec.path))
        self.files = [] if spec.path in PYSTDLIB else data_files(self.path)
        self.kind: Origin
        if spec.path in PYSTDLIB and not self.path.exists():
            self.kind = "pystdlib"
            if spec.options:
                raise UserError(
                    f"dataset_args: {spec.path} has no option {next(iter(spec.options))!r}"
                )
        elif is_saved(self.path):
            self.kind = "saved"
        elif preprocessed:
            found = "holds no saved dataset" if self.path.exists() else "does not exist"
            raise UserError(
                f"dataset_args: {spec.path!r} {found}; load_preprocessed_data: true needs a "
                "folder written by save_to_disk (or by `prepare`)"
            )
        elif self.files:
            self.kind = "files"
        elif self.path.exists():
            known = ", ".join(BUILDERS)
            raise UserError(f"dataset_args: {spec.path!r} has no file of a known type ({known})")
        elif re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", spec.path):
            self.kind = "hub"
        else:
            raise UserError(f"dataset_args: {spec.path!r}: no such file or folder")

    def fingerprint(self) -> str:
        """Identifies the content: names, sizes and times of files, or what the Hub reports."""
        if self.kind == "pystdlib":
            return pystdlib.fingerprint()
        if self.kind == "hub":
            return "/".join(
                f"{name}={getattr(split, '_fingerprint', '')}"
                for name, split in sorted(self._tables(streaming=False).items())
            )
        digest = hashlib.blake2b(digest_size=16)
        files = self.files if self.kind == "files" else sorted(self.path.rglob("*"))
        for file in files:
            if file.is_file():
                state = file.stat()
                name = os.path.relpath(file, self.path)
                digest.update(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
        return digest.hexdigest()

    def parts(self, *, streaming: bool = False) -> dict[str, Part]:
        """Returns the `train` and, where there is one, the `test` part, limits applied.

        With a test split of its own (test, validation, ...) a source uses that. Otherwise a test
        limit takes that many rows from the front and training starts behind them, the same for
        streams; without a test limit every twentieth row is the test set (a stream has none).
        """
        splits = self._tables(streaming=streaming)
        limits = dict(self.spec.limits)
        for key in limits:
            if key not in splits and key not in ("train", "test"):
                raise UserError(
                    f"dataset_args: {self.spec.path} has no split {key!r}, only "
                    f"{', '.join(splits)}{nearest(key, splits)}"
                )
        named = [name for name in limits if name in TEST_NAMES and name in splits]
        test_name = next((n for n in (*named, *TEST_NAMES) if n in splits), None)
        rest = [name for name in splits if name not in TEST_NAMES]
        train_name = "train" if "train" in splits else next(iter(rest), None)
        if train_name is None:
            train_name, test_name = next(iter(splits)), None
        test_limit = limits.get(test_name or "test", limits.get("test"))
        train_limit = limits.get(train_name, limits.get("train"))
        train = self._part(train_name, splits[train_name])
        if test_name is not None:
            test = self._part(test_name, splits[test_name])
            parts = {"train": window(train, 0, train_limit), "test": window(test, 0, test_limit)}
        elif test_limit is None and train.size is not None:
            every = _DEFAULT_TEST
            test = chosen(train, lambda i: i * every + every - 1, train.size // every)
            rest_size = train.size - train.size // every
            train = chosen(train, lambda i: i + i // (every - 1), rest_size)
            parts = {"train": window(train, 0, train_limit), "test": test}
        else:
            parts = {
                "train": window(train, test_limit or 0, train_limit),
                "test": window(train, 0, test_limit or 0),
            }
        parts = {key: part._replace(split=key) for key, part in parts.items()}
        if parts["train"].size == 0:
            raise UserError(f"dataset_args: {self.spec.path} has no training rows")
        if parts["test"].size == 0:
            del parts["test"]
        return parts

    def _part(self, split: str, table: Any) -> Part:
        part = part_of(self.spec.path, split, table)
        paths: list[Path] = []
        if self.kind == "files":
            files = by_split(self.files, self.path, self.spec.path)[1]
            paths = [Path(file) for file in files.get(split, [])]
        if paths and part.named is None and can_read(paths):
            part = part._replace(named=places(paths))
        return part

    def _tables(self, *, streaming: bool) -> Mapping[str, Any]:
        return open_tables(self.spec, self.kind, self.path, self.files, streaming=streaming)
