"""The data of tasks in a folder: `--data DIR`.

The data of a task lies in DIR under one of these names, as a folder or as one file: the task
(`gsm8k`), the data set as lm_eval names it (`openai/gsm8k`), that with __ for /, or its last part
(`gsm8k`, `mmlu`, `hellaswag`). Inside, for a data set with configurations such as mmlu's anatomy:

    DIR/mmlu/anatomy/test.jsonl            a folder each (as on the Hub, and as --download writes)
    DIR/cmmlu/test/anatomy.csv             a folder for each split
    DIR/ceval-exam/val/law_val.csv         the same with the split in the name again
    DIR/gpqa/gpqa_main.csv                 one file each

and without: DIR/gsm8k/test.jsonl, or DIR/gsm8k/test-00000-of-00001.parquet. Files are .json,
.jsonl, .csv, .tsv, .parquet and .arrow (.gz, .xz and .bz2 of texts), or a folder written by
save_to_disk. The split of a file is in its name or its folder's; one without is the one asked.
"""

import bz2
import csv
import gzip
import json
import lzma
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxllada.apps.task_needs import Needs
from jaxllada.common.errors import UserError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
PACKED = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
ALIKE = ({"validation", "valid", "val", "dev"}, {"train", "training"}, {"test"})


class LocalData(NamedTuple):
    """A folder that holds the data of tasks."""

    folder: Path

    @classmethod
    def open(cls, name: str) -> "LocalData":
        """Raises `UserError` where there is no such folder."""
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise UserError(f"data={name}: no such folder; it holds a folder for each data set")
        return cls(folder)

    def find(self, task: str, path: str, name: str | None, names: Iterable[str] = ()) -> "TaskData":
        """The data of a task; raises `UserError` that says where it was looked for."""
        last = path.rsplit("/", 1)[-1]
        tried = list(dict.fromkeys([task, *names, path, path.replace("/", "__"), last]))
        for candidate in tried:
            folder = self.folder / candidate
            files = [folder.with_name(folder.name + suffix) for suffix in SUFFIXES]
            for file in files:
                if file.is_file():
                    return TaskData(task, file, None)
            if not folder.is_dir():
                continue
            inner = folder / name if name else folder
            if inner.is_dir():
                return TaskData(task, inner, None)
            if files_named(folder, str(name)):
                return TaskData(task, folder, name)
            if not name or candidate == task:
                return TaskData(task, folder, None)
        wanted = f" ({name})" if name else ""
        raise UserError(
            f"data={self.folder}: no data for {task}, which reads {path}{wanted}; looked for"
            f" {', '.join(tried)}"
        )


class TaskData(NamedTuple):
    """The files of one task."""

    task: str
    folder: Path
    name: str | None
    """Only files of this configuration."""

    def splits(self, needs: Needs) -> dict[str, Any]:
        """{split: Dataset} under the names that the task uses.

        A split for examples that nobody asked for may be missing; it is empty then.
        """
        tables = self._saved() or self._read(needs)
        splits = dict(tables)
        for wanted in (needs.asked, needs.shown):
            if wanted and wanted not in splits and (other := _alike(wanted, tables, needs)):
                splits[wanted] = tables[other]
        if needs.shown and needs.shown not in splits and not needs.shots and needs.asked in splits:
            splits[needs.shown] = splits[needs.asked].select([])
        return splits

    def _saved(self) -> dict[str, Any] | None:
        if not any((self.folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            return None
        import datasets

        found: Any = datasets.load_from_disk(str(self.folder))
        return dict(found) if isinstance(found, Mapping) else {"test": found}

    def _read(self, needs: Needs) -> dict[str, Any]:
        from datasets import concatenate_datasets

        if self.folder.is_file():
            files = [self.folder]
        else:
            files = files_named(self.folder, self.name) if self.name else data_files(self.folder)
        if not files:
            raise UserError(f"tasks: {self.task}: {self.folder} has no {', '.join(SUFFIXES)} file")
        parts: dict[str, list[Any]] = {}
        for file in files:
            split = split_of(file, self.folder) or needs.asked or "test"
            parts.setdefault(split, []).append(read_table(file, self.task))
        return {split: concatenate_datasets(tables) for split, tables in parts.items()}


def _alike(wanted: str, tables: Mapping[str, Any], needs: Needs) -> str | None:
    taken = {needs.asked, needs.shown} - {wanted}
    for words in ALIKE:
        if wanted in words:
            return next((name for name in tables if name in words and name not in taken), None)
    return None


def data_files(folder: Path) -> list[Path]:
    """Every data file below a folder, in order of their names."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and stem_of(file))


def stem_of(file: Path) -> str | None:
    """The name without its endings, or None for a file of another kind."""
    name = file.name
    if file.suffix in PACKED:
        name = file.stem
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES or name.startswith((".", "dataset_info", "state")):
        return None
    return name[: -len(suffix)]


def files_named(folder: Path, name: str) -> list[Path]:
    """Files of one configuration: anatomy.csv, anatomy_test.csv, test/anatomy.csv."""
    words = "|".join(word for group in ALIKE for word in group)
    split, part = rf"(?:{words})", r"(?:-\d+-of-\d+)?"
    pattern = re.compile(rf"(?:{split}[-_])?{re.escape(name)}(?:[-_]{split})?{part}")
    return [file for file in data_files(folder) if pattern.fullmatch(stem_of(file) or "")]


def split_of(file: Path, root: Path) -> str | None:
    """The split that the name of a file or of its folder says."""
    known = {word for group in ALIKE for word in group}
    folders = [] if file == root else list(file.relative_to(root).parts[:-1])
    for part in [stem_of(file) or "", *reversed(folders)]:
        words = re.split(r"[-_.]", part.lower())
        for word in (words[0], words[-1], *words):
            if word in known:
                return word
    return None


def read_table(file: Path, task: str) -> Any:
    """A file as a Dataset; raises `UserError` that names task and file."""
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
        return datasets.Dataset.from_dict({n: [row.get(n) for row in rows] for n in names})
    except Exception as error:  # every reader raises its own kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"tasks: {task}: {file} could not be read: {reason}") from error


def _rows(stream: Any, kind: str) -> list[Any]:
    if kind in (".csv", ".tsv"):
        return list(csv.DictReader(stream, delimiter="\t" if kind == ".tsv" else ","))
    text = stream.read()
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines() if line.strip()]
