"""Real text that every machine has: the running interpreter's own documentation and sources.

Three kinds of documents, none of which repeats another: the language reference topics of pydoc,
the docstrings of every module (read from the syntax tree of Python modules, from the objects of
compiled ones), and the sources of the standard library with those docstrings taken out. The split
goes by file: what belongs to one module, its compiled accelerator included, is all on one side.
"""

import functools
import hashlib
import sys
from typing import Literal

from jaxllada.common.data.pystdlib_texts import (
    Document,
    compiled,
    compiled_files,
    source_files,
    sources,
    topics,
)
from jaxllada.common.errors import UserError

Split = Literal["train", "test"]

_FORMAT = 1  # of the documents; counts up when they are made in another way
_VALIDATION_SHARE = 20  # one group in twenty
_SHARED_LINES = 0.2
_LONG_LINE = 30


def documents(split: Split) -> list[Document]:
    """Returns the documents of one split in a fixed order, the same for one interpreter.

    A validation text more than a fifth of whose long lines also stand in a training text is moved
    to the training side with its group.
    """
    everything, validation = _split()
    return [d for d in everything if (d.group in validation) == (split == "test")]


def validation_groups() -> frozenset[str]:
    """The groups whose texts are the validation split."""
    return _split()[1]


def fingerprint() -> str:
    """Identifies the texts for a cache without reading them: the interpreter and its files."""
    digest = hashlib.blake2b(f"{_FORMAT}\0{sys.version}".encode(), digest_size=16)
    for name, path in sorted({**source_files(), **compiled_files()}.items()):
        state = path.stat()
        digest.update(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    return digest.hexdigest()


@functools.cache
def _split() -> tuple[list[Document], frozenset[str]]:
    everything = _unique(sorted([*topics(), *sources(), *compiled()]))
    if not everything:
        raise UserError("dataset_args=pystdlib: this Python has neither sources nor documentation")
    groups = {d.group for d in everything}
    validation = {g for g in groups if _number(g) % _VALIDATION_SHARE == 0}
    validation = _without_overlap(everything, validation)
    if not validation or validation == groups:
        raise UserError("dataset_args=pystdlib: too little text in this Python to split")
    return everything, frozenset(validation)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _unique(texts: list[Document]) -> list[Document]:
    """Drops texts that say again what an earlier one said, up to white space."""
    seen: set[str] = set()
    kept = []
    for document in texts:
        words = " ".join(document.text.split())
        if len(words) >= 80 and words not in seen:
            kept.append(document)
        seen.add(words)
    return kept


def _without_overlap(everything: list[Document], validation: set[str]) -> set[str]:
    lines = [_long_lines(document.text) for document in everything]
    training: set[str] = set()
    for document, own in zip(everything, lines, strict=True):
        if document.group not in validation:
            training |= own
    while True:
        moved = {
            document.group
            for document, own in zip(everything, lines, strict=True)
            if document.group in validation and len(own & training) > _SHARED_LINES * len(own)
        }
        if not moved:
            return validation
        validation = validation - moved
        for document, own in zip(everything, lines, strict=True):
            if document.group in moved:
                training |= own


def _long_lines(text: str) -> set[str]:
    lines = (line.strip() for line in text.splitlines())
    return {line for line in lines if len(line) >= _LONG_LINE}
