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

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jaxllada.apps.tasks.local_tables import (
    ALIKE,
    SUFFIXES,
    by_split,
    data_files,
    files_named,
    read_table,
    stem_of,
)
from jaxllada.apps.tasks.needs import Needs
from jaxllada.common.errors import UserError


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
            for suffix in SUFFIXES:
                if (file := folder.with_name(folder.name + suffix)).is_file():
                    return TaskData(task, file)
            if not folder.is_dir():
                continue
            if name and (folder / name).is_dir():
                return TaskData(task, folder / name)
            if name and files_named(folder, name):
                return TaskData(task, folder, name)
            if card := _card(folder, name):
                return card._replace(task=task)
            if not name or candidate == task:
                return TaskData(task, folder)
        wanted = f" ({name})" if name else ""
        places = ", ".join(tried) + (f", each with {name} in it" if name else "")
        if any(stem_of(file) for file in self.folder.iterdir() if file.is_file()):
            places += f"; files of one task belong in a folder, {self.folder / last}"
        raise UserError(
            f"data={self.folder}: no data for {task}, which reads {path}{wanted}; looked for"
            f" {places}"
        )


class TaskData(NamedTuple):
    """The files of one task."""

    task: str
    folder: Path
    name: str | None = None
    """Only files of this configuration."""
    is_card: bool = False
    """The README.md says which files that are."""

    def splits(self, needs: Needs) -> "Splits":
        """The tables under the names that the task uses.

        A split for examples may be missing where none are asked for; it is empty then.
        """
        found = self._described() if self.is_card else self._read(needs)
        tables, names = dict(found.tables), dict(found.names)
        known = [split for split in (needs.asked, needs.shown) if split]
        for wanted in known:
            if wanted not in tables and (other := _alike(wanted, tables, known)):
                tables[wanted], names[wanted] = tables[other], names[other]
        if needs.shown and needs.shown not in tables and not needs.shots and needs.asked in tables:
            tables[needs.shown] = tables[needs.asked].select([])
        return Splits(tables, names)

    def _described(self) -> "Splits":
        import datasets

        try:
            found: Any = datasets.load_dataset(str(self.folder), self.name)
            return Splits(dict(found), {split: f"{self.folder}, {split}" for split in found})
        except Exception as error:  # every reader raises its own kinds
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise UserError(
                f"tasks: {self.task}: {self.folder} is not as its README.md says: {reason}"
            ) from error

    def _read(self, needs: Needs) -> "Splits":
        from datasets import concatenate_datasets

        if self.folder.is_file():
            files = [self.folder]
        else:
            files = files_named(self.folder, self.name) if self.name else data_files(self.folder)
        if not files:
            raise UserError(f"tasks: {self.task}: {self.folder} has no {', '.join(SUFFIXES)} file")
        known = [split for split in (needs.asked, needs.shown) if split]
        parts = by_split(files, self.folder, known, needs.asked or "test", self.task)
        tables, names = {}, {}
        for split in _wanted(needs, known, parts):
            several = parts[split]
            more = f" and {len(several) - 1} more" if len(several) > 1 else ""
            names[split] = f"{several[0]}{more}"
            rows = [read_table(file, self.task, needs.label) for file in several]
            try:
                tables[split] = concatenate_datasets(rows)
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"tasks: {self.task}: {names[split]} do not go together:"
                    f" {' '.join(str(error).split())[:200]}"
                ) from error
        return Splits(tables, names)


class Splits(NamedTuple):
    """The rows of a task."""

    tables: dict[str, Any]
    """{split: Dataset}"""
    names: dict[str, str]
    """Where they are from, for messages."""


def _card(folder: Path, name: str | None) -> TaskData | None:
    """Data as the README.md of a data set describes it, if it knows the configuration."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    from huggingface_hub import DatasetCard

    try:
        configs = DatasetCard.load(card).data.to_dict().get("configs") or []
    except ValueError:
        return None
    if name is None and len(configs) < 2:
        return None
    known = [config.get("config_name") for config in configs if isinstance(config, dict)]
    return TaskData("", folder, name, is_card=True) if name is None or name in known else None


def _wanted(needs: Needs, known: list[str], there: Iterable[str]) -> list[str]:
    """The splits to be read: those that are used, or all where one that is needed is missing."""
    found = {split: split if split in there else _alike(split, there, known) for split in known}
    if not needs.splits or not all(found[split] for split in needs.splits):
        return list(there)
    return [split for split in dict.fromkeys(found.values()) if split]


def _alike(wanted: str, there: Iterable[str], known: Iterable[str]) -> str | None:
    """The split that goes by another name, unless the task uses it under its own."""
    for words in ALIKE:
        if wanted in words:
            free = (name for name in there if name in words and name not in known)
            return next(free, None)
    return None
