"""The manifest of a checkpoint folder: written last, it proves that everything else is there.

A folder counts as a checkpoint only with a manifest whose list of files, sizes and hashes agrees
with the disk. Interrupted writes therefore never look like checkpoints.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that readers see the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listing(folder: Path) -> dict[str, Path]:
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() != MANIFEST
    }


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_manifest(
    folder: Path, meta: dict[str, Any], *, below: str = "", hashes: bool = True
) -> None:
    """Hashes every file of `folder` and writes the manifest with `meta` (JSON values) beside.

    `below` limits it to names that begin so. Without `hashes` it lists names and sizes alone.
    """
    files = {
        name: [path.stat().st_size, _hash(path) if hashes else None]
        for name, path in _listing(folder).items()
        if name.startswith(below)
    }
    _write(folder, {"files": files, "meta": meta})


def update_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Replaces the meta data of a manifest; the files stay as they were hashed."""
    _write(folder, {"files": _read(folder)["files"], "meta": meta})


def _write(folder: Path, content: dict[str, Any]) -> None:
    content = json.loads(json.dumps(content))
    text = json.dumps({**content, "seal": _seal(content)}, indent=1)
    write_atomically(folder / MANIFEST, text.encode())


def _read(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / MANIFEST).read_text())
    seal = content.pop("seal")
    if seal != _seal(content):
        raise ValueError("does not agree with its own hash")
    return content


def read_meta(folder: Path) -> dict[str, Any]:
    """Returns the meta data of a checkpoint."""
    return _read(folder)["meta"]


def fault(folder: Path, *, hashes: bool = True, below: str = "") -> str:
    """Says in a few words why `folder` is not a sound checkpoint; an empty string means it is.

    Without `hashes` only names and sizes are compared; `below` limits the hashing, which reads
    every byte, to names that begin so.
    """
    if not (folder / MANIFEST).is_file():
        return "incomplete: it was being written when the run ended"
    try:
        expected = _read(folder)["files"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"damaged: {MANIFEST} is unreadable ({error})"
    found = _listing(folder)
    for name, (size, digest) in expected.items():
        if name not in found:
            return f"damaged: {name} is missing"
        if found[name].stat().st_size != size:
            return f"damaged: {name} has {found[name].stat().st_size} bytes instead of {size}"
        is_hashed = hashes and digest is not None and name.startswith(below)
        if is_hashed and _hash(found[name]) != digest:
            return f"damaged: the content of {name} has changed"
    return ""


def step_folders(checkpoints: Path) -> dict[int, Path]:
    """Folders of `checkpoints` that are named by a step, sound or not, in rising order."""
    if not checkpoints.is_dir():
        return {}
    named = (path for path in checkpoints.iterdir() if path.name.isdecimal() and path.is_dir())
    return {int(path.name): path for path in sorted(named, key=lambda path: int(path.name))}
