"""Which files of a path are data, what reads them, and which split they belong to."""

import re
from collections.abc import Sequence
from pathlib import Path

from jaxllada.common.errors import UserError

TEST_NAMES = ("test", "validation", "valid", "val", "dev", "eval")
"""Splits that are not trained on, by the first word of a file or folder."""
BUILDERS = {
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
"""The builder of `datasets` for each type of file."""
_COMPRESSED = {".gz", ".xz", ".bz2", ".zst"}


def data_files(path: Path) -> list[Path]:
    """Returns the file itself, or all files of known types below a folder, in order."""
    if path.is_file():
        return [path] if _kind_of(path) in BUILDERS else []
    if not path.is_dir():
        return []
    files = (file for file in sorted(path.rglob("*")) if not file.name.startswith("."))
    return [file for file in files if file.is_file() and _kind_of(file) in BUILDERS]


def by_split(files: Sequence[Path], root: Path, source: str) -> tuple[str, dict[str, list[str]]]:
    """Returns the builder of `datasets` for these files, and the files of each split.

    Raises UserError, naming `source`, where they are of several types.
    """
    builders = {BUILDERS[_kind_of(file)] for file in files}
    if len(builders) > 1:
        raise UserError(
            f"dataset_args: {source!r} mixes {' and '.join(sorted(builders))} files; "
            "name them one by one"
        )
    splits: dict[str, list[str]] = {}
    for file in files:
        splits.setdefault(_split_of(file, root), []).append(str(file))
    return builders.pop(), splits


def is_saved(path: Path) -> bool:
    """Whether a folder was written by save_to_disk."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _kind_of(file: Path) -> str:
    suffixes = [s.lower() for s in file.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _split_of(file: Path, root: Path) -> str:
    """Reads the split off a file name (`train-00001.jsonl`) or a folder (`test/a.txt`)."""
    if file != root:
        for name in (*file.relative_to(root).parts[:-1], file.name):
            word = re.split(r"[-_.]", name.lower())[0]
            if word in ("train", *TEST_NAMES):
                return word
    return "train"
