"""Reads the files of a task's data: which split each one is, and its rows.

Files are .json, .jsonl, .csv, .tsv (also .gz, .xz, .bz2), .parquet and .arrow.
"""

import bz2
import contextlib
import csv
import gzip
import json
import lzma
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxllada.common.errors import UserError

SEPARATED = {".csv": ",", ".tsv": "\t"}
NOT_DATA = ("dataset_dict.json", "dataset_info.json", "state.json", "package.json")
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
PACKED = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
ALIKE = (("validation", "valid", "val", "dev"), ("train", "training"), ("test",))
"""Names of the same split."""
WORDS = tuple(word for group in ALIKE for word in group)


def data_files(folder: Path) -> list[Path]:
    """Every data file below a folder, in order of their names."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and stem_of(file))


def stem_of(file: Path) -> str | None:
    """The name without its endings and part numbers, or None for a file of another kind."""
    name = file.stem if file.suffix in PACKED else file.name
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES or name.startswith(".") or name in NOT_DATA:
        return None
    return re.sub(r"-\d+-of-\d+$", "", name[: -len(suffix)])


def files_named(folder: Path, name: str) -> list[Path]:
    """Files of one configuration: anatomy_test.csv, test/anatomy.csv, test/anatomy/1.json."""
    split = rf"(?:{'|'.join(WORDS)})"
    pattern = re.compile(rf"(?:{split}[-_])?{re.escape(name)}(?:[-_]{split})?", re.IGNORECASE)
    return [
        file
        for file in data_files(folder)
        if pattern.fullmatch(stem_of(file) or "") or name in file.relative_to(folder).parts[:-1]
    ]


def by_split(
    files: Sequence[Path], root: Path, known: Sequence[str], asked: str, task: str
) -> dict[str, list[Path]]:
    """The files of each split; those that say none are of the split `asked`.

    A file that is called as the split, or lies in a folder that is, goes before others whose names
    only have it in them. Raises `UserError` where it is not clear which files make a split.
    """
    found: dict[str, dict[bool, list[Path]]] = {}
    for file in files:
        split, is_exact = split_of(file, root, known) or (asked, False)
        found.setdefault(split, {}).setdefault(is_exact, []).append(file)
    parts = {}
    for split, ways in found.items():
        parts[split] = ways.get(True) or ways[False]
        stems = {stem_of(file) for file in parts[split]} if True not in ways else set()
        kinds = {_kind_of(file) for file in parts[split]}
        if len(stems) > 1 or len(kinds) > 1:
            several = ", ".join(str(file.relative_to(root)) for file in parts[split][:4])
            raise UserError(
                f"tasks: {task}: {root}: which of {several} holds the split {split}? Call that one"
                f" {split}, or keep one alone"
            )
    return parts


def split_of(file: Path, root: Path, known: Iterable[str] = ()) -> tuple[str, bool] | None:
    """The split that the name of a file or of its folder says, and whether it is the whole name."""
    folders = [] if file == root else list(file.relative_to(root).parts[:-1])
    names = [stem_of(file) or "", *reversed(folders)]
    for name in names:
        if name in known or name in WORDS:
            return name, True
    for name in names:
        said = re.split(r"[-_.]", name.lower())
        for word in (said[0], *reversed(said)):
            if word in WORDS:
                return word, False
    return None


def _kind_of(file: Path) -> str:
    return Path(file.stem if file.suffix in PACKED else file.name).suffix.lower()


def read_table(file: Path, task: str, label: str | None = None) -> Any:
    """A file as a Dataset; raises `UserError` that names task and file.

    What a CSV file holds stays text, also NA and 1.0; only the column `label` becomes numbers
    where all of it are.
    """
    import datasets
    import pyarrow.parquet

    kind = _kind_of(file)
    try:
        if kind == ".parquet":
            return datasets.Dataset(pyarrow.parquet.read_table(file))
        if kind == ".arrow":
            return datasets.Dataset.from_file(str(file), in_memory=True)
        opener: Any = PACKED.get(file.suffix, open)
        with opener(file, "rt", encoding="utf-8-sig", newline="") as stream:
            rows = _rows(stream, kind)
        if not rows or not all(isinstance(row, dict) for row in rows):
            raise ValueError("expected objects, one a line or in one list")
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = {name: [row.get(name) for row in rows] for name in names}
        if kind in SEPARATED and label in columns and all(map(_is_index, columns[label])):
            columns[label] = [int(value) for value in columns[label]]
        return datasets.Dataset.from_dict(columns)
    except Exception as error:  # every reader raises its own kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"tasks: {task}: {file} could not be read: {reason}") from error


def _is_index(value: str | None) -> bool:
    return value is not None and value.isdecimal()


def _rows(stream: Any, kind: str) -> list[Any]:
    if kind in SEPARATED:
        rows = list(csv.DictReader(stream, delimiter=SEPARATED[kind]))
        if any(None in row for row in rows):
            raise ValueError("a line has more fields than the first, which names the columns")
        return rows
    text = stream.read()
    if kind == ".json":
        with contextlib.suppress(json.JSONDecodeError):  # such files also hold lines
            whole = json.loads(text)
            return whole if isinstance(whole, list) else [whole]
    return [json.loads(line) for line in text.split("\n") if line.strip()]
