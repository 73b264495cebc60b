"""Where rows come from: save_to_disk folders, files, the Hub and the interpreter's own text.

A source has splits; `parts` turns them into a train and a test part that never share a row.
`datasets` is imported only when a source has to be opened, since that takes a second.
"""

import contextlib
import hashlib
import logging
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxllada.common.data import pystdlib, pystdlib_pairs
from jaxllada.common.data.grammar import SourceSpec, located
from jaxllada.common.data.json_lines import JsonRows, can_read, places
from jaxllada.common.errors import UserError, nearest

_PYSTDLIB = ("pystdlib", "pystdlib-pairs")
_TEST_NAMES = ("test", "validation", "valid", "val", "dev", "eval")
_BUILDERS = {
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
_COMPRESSED = {".gz", ".xz", ".bz2", ".zst"}
_DEFAULT_TEST = 20  # every twentieth row


class Part(NamedTuple):
    """Some rows of one split, in order. `size` is None while the end of a stream is unknown."""

    source: str
    split: str
    columns: tuple[str, ...]
    size: int | None
    open: Callable[[int], Iterator[dict[str, Any]]]
    named: Callable[[int], str] | None = None

    def where(self, row: int) -> str:
        """Names a row of this part for an error message, by file and line where that is known."""
        if self.named is not None:
            return self.named(row)
        return f"{self.source}, {self.split} row {row}"


class Source:
    """One item of `dataset_args`, opened when its parts are asked for."""

    def __init__(self, spec: SourceSpec, *, preprocessed: bool = False):
        self.spec, self.path = spec, Path(located(spec.path))
        self.files = [] if spec.path in _PYSTDLIB else _data_files(self.path)
        if spec.path in _PYSTDLIB and not self.path.exists():
            self.kind = "pystdlib"
            if spec.options:
                raise UserError(
                    f"dataset_args: {spec.path} has no option {next(iter(spec.options))!r}"
                )
        elif _is_saved(self.path):
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
            known = ", ".join(_BUILDERS)
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
                for name, split in sorted(self._loaded(streaming=False).items())
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
        splits = self._loaded(streaming=streaming)
        limits = dict(self.spec.limits)
        for key in limits:
            if key not in splits and key not in ("train", "test"):
                raise UserError(
                    f"dataset_args: {self.spec.path} has no split {key!r}, only "
                    f"{', '.join(splits)}{nearest(key, splits)}"
                )
        named = [name for name in limits if name in _TEST_NAMES and name in splits]
        test_name = next((n for n in (*named, *_TEST_NAMES) if n in splits), None)
        rest = [name for name in splits if name not in _TEST_NAMES]
        train_name = "train" if "train" in splits else next(iter(rest), None)
        if train_name is None:
            train_name, test_name = next(iter(splits)), None
        test_limit = limits.get(test_name or "test", limits.get("test"))
        train_limit = limits.get(train_name, limits.get("train"))
        train = self._part(train_name, splits[train_name])
        if test_name is not None:
            test = self._part(test_name, splits[test_name])
            parts = {"train": _window(train, 0, train_limit), "test": _window(test, 0, test_limit)}
        elif test_limit is None and train.size is not None:
            every = _DEFAULT_TEST
            test = _chosen(train, lambda i: i * every + every - 1, train.size // every)
            rest_size = train.size - train.size // every
            train = _chosen(train, lambda i: i + i // (every - 1), rest_size)
            parts = {"train": _window(train, 0, train_limit), "test": test}
        else:
            parts = {
                "train": _window(train, test_limit or 0, train_limit),
                "test": _window(train, 0, test_limit or 0),
            }
        parts = {key: part._replace(split=key) for key, part in parts.items()}
        if parts["train"].size == 0:
            raise UserError(f"dataset_args: {self.spec.path} has no training rows")
        if parts["test"].size == 0:
            del parts["test"]
        return parts

    def _part(self, split: str, table: Any) -> Part:
        part = _part(self.spec.path, split, table)
        files = self._builder()[1].get(split, []) if self.kind == "files" else []
        paths = [Path(file) for file in files]
        if paths and part.named is None and can_read(paths):
            part = part._replace(named=places(paths))
        return part

    def _loaded(self, *, streaming: bool) -> Mapping[str, Any]:
        if self.spec.path == "pystdlib" and self.kind == "pystdlib":
            return {
                split: [{"text": d.text} for d in pystdlib.documents(split)]
                for split in ("train", "test")
            }
        if self.kind == "pystdlib":
            return {
                split: [
                    {"prompt": pair.prompt, "response": pair.response}
                    for pair in pystdlib_pairs.pairs(split)
                ]
                for split in ("train", "test")
            }
        import datasets

        options: dict[str, Any] = dict(self.spec.options)
        try:
            if self.kind == "saved":
                loaded: Any = datasets.load_from_disk(str(self.path))
                if streaming:
                    loaded = (
                        {name: d.to_iterable_dataset() for name, d in loaded.items()}
                        if isinstance(loaded, dict)
                        else loaded.to_iterable_dataset()
                    )
            elif self.kind == "files":
                builder, files = self._builder()
                if builder == "text":
                    options = {"sample_by": "document"} | options
                if any(".tsv" in file.name for file in self.files):
                    options = {"sep": "\t"} | options
                # What it has to say of a broken line comes by file and line from here.
                logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
                loaded = datasets.load_dataset(
                    builder, data_files=files, streaming=streaming, **options
                )
            else:
                with _offline_where_unreachable():
                    loaded = datasets.load_dataset(self.spec.path, streaming=streaming, **options)
        except UserError:
            raise
        except Exception as error:  # every reader raises its own kinds
            if self.kind == "files" and not streaming and not options and can_read(self.files):
                # No table can be made of them: a broken line, or columns that change their type.
                read = {
                    split: JsonRows([Path(file) for file in paths])
                    for split, paths in self._builder()[1].items()
                }
                if any(rows.column_names for rows in read.values()):
                    return read
            cause = error if isinstance(error, ConnectionError) else error.__cause__ or error
            reason = " ".join(str(cause).split())[:300]
            where = "could not be read"
            if self.kind == "hub":
                where = "is no local file or folder, and could not be read from the Hub"
            raise UserError(f"dataset_args: {self.spec.path!r} {where}: {reason}") from error
        return loaded if isinstance(loaded, dict) else {"train": loaded}

    def _builder(self) -> tuple[str, dict[str, list[str]]]:
        builders = {_BUILDERS[_kind_of(file)] for file in self.files}
        if len(builders) > 1:
            raise UserError(
                f"dataset_args: {self.spec.path!r} mixes {' and '.join(sorted(builders))} files; "
                "name them one by one"
            )
        files: dict[str, list[str]] = {}
        for file in self.files:
            files.setdefault(_split_of(file, self.path), []).append(str(file))
        return builders.pop(), files


@contextlib.contextmanager
def _offline_where_unreachable() -> Iterator[None]:
    """Uses only what is cached where the Hub's name cannot be resolved, instead of retrying.

    Behind a proxy names need not resolve, so nothing is concluded there.
    """
    from huggingface_hub import constants

    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname or ""
    unreachable = False
    if not (constants.HF_HUB_OFFLINE or urllib.request.getproxies()):
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            unreachable = True
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or unreachable
    try:
        yield
    except Exception as error:
        if unreachable:
            raise ConnectionError(f"{host} cannot be reached, and it is not cached") from error
        raise
    finally:
        constants.HF_HUB_OFFLINE = before


def _kind_of(file: Path) -> str:
    suffixes = [s.lower() for s in file.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _data_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if _kind_of(path) in _BUILDERS else []
    if not path.is_dir():
        return []
    files = (file for file in sorted(path.rglob("*")) if not file.name.startswith("."))
    return [file for file in files if file.is_file() and _kind_of(file) in _BUILDERS]


def _split_of(file: Path, root: Path) -> str:
    """Reads the split off a file name (`train-00001.jsonl`) or a folder (`test/a.txt`)."""
    if file != root:
        for name in (*file.relative_to(root).parts[:-1], file.name):
            word = re.split(r"[-_.]", name.lower())[0]
            if word in ("train", *_TEST_NAMES):
                return word
    return "train"


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _part(source: str, split: str, table: Any) -> Part:
    if isinstance(table, JsonRows):
        names = table.column_names
        return Part(source, split, names, len(table), table.rows, table.name)
    if isinstance(table, list):
        columns = tuple(table[0]) if table else ()
        return Part(source, split, columns, len(table), lambda start: iter(table[start:]))
    if hasattr(table, "select"):
        size = len(table)

        def rows(start: int) -> Iterator[dict[str, Any]]:
            if start >= size:
                return iter(())
            chosen = table.select(range(start, size))
            # Ids as arrays: Python lists of a million rows would take hours.
            return iter(
                chosen.with_format("numpy") if "input_ids" in table.column_names else chosen
            )

        return Part(source, split, tuple(table.column_names), size, rows)
    columns = table.column_names or tuple(next(iter(table.take(1)), {}))
    return Part(source, split, tuple(columns), None, lambda start: iter(table.skip(start)))


def _window(part: Part, first: int, limit: int | None) -> Part:
    """Rows from `first` on, at most `limit` of them."""
    size = None if part.size is None else max(0, part.size - first)
    if limit is not None:
        size = limit if size is None else min(size, limit)

    def rows(start: int) -> Iterator[dict[str, Any]]:
        if limit is not None and start >= limit:
            return
        for i, row in enumerate(part.open(first + start), start + 1):
            yield row
            if i == limit:
                return

    named = None if part.named is None else lambda row: part.where(first + row)
    return part._replace(size=size, open=rows, named=named)


def _chosen(part: Part, place: Callable[[int], int], size: int) -> Part:
    """Some rows of a part: row i is its row `place(i)`, which grows with i."""

    def rows(start: int) -> Iterator[dict[str, Any]]:
        if start >= size:
            return
        wanted, first = start, place(start)
        for number, row in enumerate(part.open(first), first):
            if number == place(wanted):
                yield row
                wanted += 1
                if wanted == size:
                    return

    named = None if part.named is None else lambda row: part.where(place(row))
    return part._replace(size=size, open=rows, named=named)
