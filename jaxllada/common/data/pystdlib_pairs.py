"""Instruction pairs that every machine has: what functions of the standard library do.

The question is the name and signature of a function or class, the answer the first paragraph of
its docstring. The split is that of `pystdlib.py`: what is asked in validation belongs to modules
whose text a model pre-trained on `pystdlib` has not seen.
"""

import ast
import functools
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jaxllada.common.data.pystdlib import Split, validation_groups
from jaxllada.common.data.pystdlib_texts import group_of, source_files

_SHORTEST, _LONGEST = 15, 400
_LONGEST_QUESTION = 160


class Pair(NamedTuple):
    """A question and its answer; `module` is where they come from."""

    module: str
    prompt: str
    response: str


def pairs(split: Split) -> list[Pair]:
    """Returns the pairs of one split in a fixed order, each answer to a question once."""
    validation = validation_groups()
    return [
        pair for pair in _everything() if (group_of(pair.module) in validation) == (split == "test")
    ]


@functools.cache
def _everything() -> tuple[Pair, ...]:
    seen: set[tuple[str, str]] = set()
    found = []
    for relative, path in sorted(source_files().items()):
        for pair in _module(path, relative):
            # Methods of one name that say the same in every class are one pair.
            key = (pair.prompt.partition("(")[0].rpartition(".")[2], pair.response)
            if key not in seen:
                found.append(pair)
            seen.add(key)
    return tuple(found)


def _module(path: Path, relative: str) -> Iterator[Pair]:
    try:
        with tokenize.open(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in old modules
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
        return
    module = relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    yield from _pairs(tree, module, module)


def _pairs(node: ast.AST, name: str, module: str) -> Iterator[Pair]:
    for child in getattr(node, "body", []):
        if isinstance(child, (ast.If, ast.Try)):
            yield from _pairs(child, name, module)
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        title = f"{name}.{child.name}"
        if isinstance(child, ast.ClassDef):
            yield from _pairs(child, title, module)
            question = f"class {title}"
        else:
            question = f"{title}({ast.unparse(child.args)})"
        answer = _first_paragraph(ast.get_docstring(child) or "")
        if _SHORTEST <= len(answer) <= _LONGEST and len(question) <= _LONGEST_QUESTION:
            yield Pair(module, question, answer)


def _first_paragraph(text: str) -> str:
    """The first paragraph on one line, unless it is but a signature or an underlined title."""
    paragraphs = [" ".join(part.split()) for part in text.strip().split("\n\n")]
    first = paragraphs[0]
    looks_like_text = first[:1].isalpha() and " " in first and "->" not in first
    return first if looks_like_text and first[-1:] in ".:!?" else ""
