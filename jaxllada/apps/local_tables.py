"""Reads the files of a task's data: which split each one is, and its rows.

Files are .json, .jsonl, .csv, .tsv (also .gz, .xz, .bz2), .parquet and .arrow.
"""

import bz2
import csv
import gzip
import json
import lzma
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxllada.common.errors import UserError

SEPARATED = {".csv": ",", ".tsv": "\t"}
NOT_DATA = ("dataset_dict.json", "dataset_info.json", "state.json", "package.json")
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
PACKED = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
ALIKE = ({"validation", "valid", "val", "dev"}, {"train", "training"}, {"test"})


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
    """Files of one configuration: anatomy.csv, anatomy_test.csv, test/anatomy.csv."""
    words = "|".join(word for group in ALIKE for word in group)
    split = rf"(?:{words})"
    pattern = re.compile(rf"(?:{split}[-_])?{re.escape(name)}(?:[-_]{split})?")
    return [file for file in data_files(folder) if pattern.fullmatch(stem_of(file) or "")]


def split_of(file: Path, root: Path, known: Iterable[str] = ()) -> str | None:
    """The split that the name of a file or of its folder says; one of `known` is taken whole."""
    words = {word for group in ALIKE for word in group}
    folders = [] if file == root else list(file.relative_to(root).parts[:-1])
    names = [stem_of(file) or "", *reversed(folders)]
    for name in names:
        if name in known:
            return name
    for name in names:
        said = re.split(r"[-_.]", name.lower())
        for word in (said[0], *reversed(said)):
            if word in words:
                return word
    return None


def read_table(file: Path, task: str, label: str | None = None) -> Any:
    """A file as a Dataset; raises `UserError` that names task and file.

    What a CSV file holds stays text, also NA and 1.0; only the column `label` becomes numbers
    where all of it are.
    """
    import datasets
    import pyarrow.parquet

    kind = Path(file.stem if file.suffix in PACKED else file.name).suffix.lower()
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
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.split("\n") if line.strip()]
