"""A short hash of the weights in a model folder, taken from samples of its files.

Kept answers are only good for the weights that gave them. Reading all of a large model for a hash
takes as long as loading it; training moves every tensor, so samples all over the files tell.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from jaxllada.common.manifest import fault, step_folders
from jaxllada.common.run.checkpoints import CHECKPOINTS

SAMPLES, SIZE = 64, 4096
"""Places of a file that are read, and bytes of each."""
KINDS = (".safetensors", ".json", ".bin", ".pt")


def fingerprint(folder: Path, *others: object) -> str:
    """Hash of the weights and configs that loading `folder` reads, and of `others` as text.

    Of a training run it is the newest checkpoint. Names are taken relative to the folder, times and
    owners are not looked at: a copy has the same hash.
    """
    digest = hashlib.blake2b(digest_size=16)
    for other in others:
        digest.update(f"{other}\0".encode())
    for path, name in _files(folder):
        size = path.stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        with path.open("rb") as file:
            for place in _places(size):
                file.seek(place)
                digest.update(file.read(SIZE))
    return digest.hexdigest()


def _places(size: int) -> Iterable[int]:
    if size <= SAMPLES * SIZE:
        return range(0, size, SIZE)
    return sorted({i * (size - SIZE) // (SAMPLES - 1) for i in range(SAMPLES)})


def _files(folder: Path) -> list[tuple[Path, str]]:
    steps = step_folders(folder / CHECKPOINTS)
    for number in sorted(steps, reverse=True):
        if not fault(steps[number], hashes=False):
            paths = [path for path in steps[number].rglob("*") if path.is_file()]
            paths += [path for path in folder.glob("config.*") if path.is_file()]
            break
    else:
        paths = [path for path in folder.glob("*") if path.suffix in KINDS and path.is_file()]
        paths += [path for path in (folder / "params").rglob("*") if path.is_file()]
    return sorted((path, path.relative_to(folder).as_posix()) for path in paths)
