"""Saves the data of tasks from the Hub to a folder: `eval --download DIR`.

What is asked or shown is written as one Parquet file for each split. Data sets that a script makes
(`datasets` 4 and later run none), such as CMMLU and C-Eval, are fetched as the files that they keep
in their repository, archives unpacked.
"""

import contextlib
import io
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxllada.apps.tasks.local_data import LocalData, TaskData
from jaxllada.apps.tasks.local_tables import stem_of
from jaxllada.apps.tasks.needs import needs_of
from jaxllada.apps.tasks.sources import Hub, Place, is_of_script, reason_of
from jaxllada.apps.tasks.words import save_words
from jaxllada.common.errors import UserError
from jaxllada.common.manifest import write_atomically


class Download(Hub):
    """The Hub, with the splits that tasks need written to a folder that `LocalData` reads."""

    advice = "set HF_ENDPOINT to a mirror, or put its files into the folder yourself"

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder
        self.saved: dict[str, dict[str, int]] = {}
        """{data set: {split: rows}} of what was written."""
        self._fetched: set[str] = set()

    def load(self, task: Any, place: Place, real: Callable[[], None]) -> None:
        needs = needs_of(task)
        if place.origin and self._has(place):
            task.dataset, self.names = self._find(place).splits(needs)
            return
        try:
            super().load(task, place, real)
        except UserError as error:
            if not error.__cause__ or not is_of_script(error.__cause__):
                raise
            self._fetch(place)
            found = self._find(place).splits(needs)
            task.dataset, self.names = found
            self.saved[place.title] = {name: len(table) for name, table in found.tables.items()}
            return
        save_words(task, place.task, self.folder)
        target = self.folder / place.path / (place.name or "")
        for split in task.dataset:
            if not needs.asked or split in (needs.asked, needs.shown):
                self._save(task.dataset[split], target / f"{split}.parquet", place, str(split))

    def _find(self, place: Place) -> TaskData:
        return LocalData(self.folder).find(place.task, place.path, place.name, place.names)

    def _has(self, place: Place) -> bool:
        with contextlib.suppress(UserError):
            return self.folder.is_dir() and bool(self._find(place))
        return False

    def _save(self, table: Any, file: Path, place: Place, split: str) -> None:
        rows = self.saved.setdefault(place.title, {})
        if split in rows:
            return
        held = io.BytesIO()
        table.to_parquet(held)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, held.getvalue())
        rows[split] = len(table)

    def _fetch(self, place: Place) -> None:
        """Copies the data files of a repository, once for all of its configurations."""
        if place.path in self._fetched:
            return
        from huggingface_hub import HfApi, hf_hub_download

        target = self.folder / place.path
        try:
            for name in HfApi().list_repo_files(place.path, repo_type="dataset"):
                if name.endswith(".zip") or stem_of(Path(name)):
                    held = Path(hf_hub_download(place.path, name, repo_type="dataset"))
                    unpack(held, target, Path(name))
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(
                f"tasks: {place.task}: the files of {place.path} could not be fetched:"
                f" {reason_of(error)}"
            ) from error
        self._fetched.add(place.path)


def unpack(file: Path, target: Path, name: Path) -> None:
    """Puts a file, or the data files of an archive, below `target`; each is whole or not there."""
    if name.suffix != ".zip":
        _place(file.read_bytes(), target / name)
        return
    with zipfile.ZipFile(file) as archive, tempfile.TemporaryDirectory() as folder:
        for inside in archive.namelist():
            if stem_of(Path(inside)) and "__MACOSX" not in inside:
                # extract() takes names that lead elsewhere back into the folder.
                out = Path(archive.extract(inside, folder))
                _place(out.read_bytes(), target / os.path.relpath(out, folder))


def _place(content: bytes, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, content)
