"""The texts of this Python: topics of its documentation, docstrings, and sources without them.

Docstrings are read from the syntax tree of Python modules and from the objects of compiled ones.
"""

import ast
import importlib
import inspect
import io
import os
import re
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_LEFT_OUT |= {"encodings", "pydoc_data", "lib-dynload", "_bundled", "msilib", "__phello__"}
# Tables of numbers and names, not text.
_TABLES = {
    "html/entities.py",
    "stringprep.py",
    "lib2to3/pgen2/token.py",
    "re/_casefix.py",
    "this.py",
}
# Importing these asks for a display or a terminal, or they hold nothing but tests.
_NOT_IMPORTED = ("_tkinter", "_test", "_xx", "xx", "_ctypes_test", "readline", "_curses", "nis")


class Document(NamedTuple):
    """One text. `group` is what the split is decided on, so that related texts stay together."""

    name: str
    kind: Literal["topic", "docstrings", "source"]
    text: str
    group: str


def group_of(module: str) -> str:
    """What a module is split with; `_pydecimal`, `_decimal` and `decimal` document one thing."""
    return module.removeprefix("_py").removeprefix("_") or module


def topics() -> Iterator[Document]:
    """Yields the topics of the language reference that pydoc has."""
    try:
        from pydoc_data.topics import topics as found
    except ImportError:
        return
    for name, text in found.items():
        yield Document(f"topic:{name}", "topic", text.strip() + "\n", f"topic:{name}")


def source_files() -> dict[str, Path]:
    """Returns the Python files that are read, by their name below the standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = {}
    for folder, names, files in os.walk(root):
        names[:] = [n for n in names if n not in _LEFT_OUT and not n.startswith("config-")]
        for file in files:
            path = Path(folder, file)
            relative = path.relative_to(root).as_posix()
            if path.suffix == ".py" and relative not in _TABLES and "_sysconfigdata" not in file:
                found[relative] = path
    return found


def compiled_files() -> dict[str, Path]:
    """Returns the extension modules of the standard library, by module name."""
    # In a virtual environment `platstdlib` is the environment's own folder, without modules.
    folders = [sysconfig.get_paths()["stdlib"] + "/lib-dynload"]
    folders += [sysconfig.get_config_var("DESTSHARED") or folders[0]]
    files = (path for folder in folders for path in sorted(Path(folder).glob("*.so")))
    return {path.name.partition(".")[0]: path for path in files}


def sources() -> Iterator[Document]:
    """Yields docstrings and sources of Python modules."""
    for relative, path in source_files().items():
        yield from _module(path, relative)


def _module(path: Path, relative: str) -> Iterator[Document]:
    try:
        with tokenize.open(path) as file:
            source = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in old modules
            tree = ast.parse(source)
    except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
        return
    module = relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    docs, bare = _take_docstrings(module, source, tree)
    if docs:
        yield Document(f"docstrings:{module}", "docstrings", docs, group_of(module))
    yield Document(f"source:{relative}", "source", bare, group_of(module))


def _take_docstrings(module: str, source: str, tree: ast.Module) -> tuple[str, str]:
    """Returns the docstrings as one readable text, and the source without them."""
    lines = source.splitlines(keepends=True)
    sections: list[tuple[int, str]] = []

    def visit(node: ast.AST, name: str) -> None:
        body = getattr(node, "body", [])
        for child in body if isinstance(body, list) else []:
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                visit(child, f"{name}.{child.name}")
            elif isinstance(child, (ast.If, ast.Try)):
                visit(child, name)
        if not isinstance(
            node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        ) or not (text := ast.get_docstring(node)):
            return
        doc = node.body[0]
        title = name
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            title = f"{name}({ast.unparse(node.args)})"
        sections.append((doc.lineno, _section(title, text)))
        first, last = doc.lineno - 1, (doc.end_lineno or doc.lineno) - 1
        # A docstring that shares its line with code stays where it is.
        if lines[first].lstrip()[:1] not in "\"'rRuUbB" or not lines[last].rstrip().endswith(
            ('"', "'")
        ):
            return
        indent = " " * doc.col_offset
        lines[first] = f"{indent}...\n" if len(node.body) == 1 and name != module else ""
        lines[first + 1 : last + 1] = [""] * (last - first)

    visit(tree, module)
    return "\n".join(text for _, text in sorted(sections)), "".join(lines).strip() + "\n"


def _section(title: str, text: str) -> str:
    body = "\n".join(f"    {line}".rstrip() for line in text.strip().splitlines())
    return f"{title}\n{body}\n"


def compiled() -> Iterator[Document]:
    """Docstrings of modules without Python source, each text once."""
    names = {*sys.builtin_module_names, *compiled_files()}
    seen: set[str] = set()
    for name in sorted(names):
        if name.startswith(_NOT_IMPORTED) or name == "__main__":
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # modules that later versions drop
                module = importlib.import_module(name)
        except Exception:  # a module whose library this machine lacks
            continue
        output = io.StringIO()
        for title, text in members(name, module):
            if len(text) > 40 and text not in seen:
                seen.add(text)
                output.write(_section(title, text) + "\n")
        if output.tell():
            text = output.getvalue()
            yield Document(f"docstrings:{name}", "docstrings", text, group_of(name))


def members(name: str, module: object) -> Iterator[tuple[str, str]]:
    """Yields (title, docstring) of a compiled module and what is in it."""
    yield name, inspect.getdoc(module) or ""
    for key, value in sorted(vars(module).items()):
        if key.startswith("__"):
            continue
        title = f"{name}.{key}" if name != "builtins" else key
        if isinstance(value, type):
            yield title, _own_doc(value)
            for method, function in sorted(vars(value).items()):
                if callable(function) and method != "__doc__":
                    yield _titled(f"{title}.{method}", function), _own_doc(function)
        # Programs replace hooks of sys and add helpers to builtins; only what is compiled counts.
        elif inspect.isbuiltin(value) and not key.endswith("hook"):
            yield _titled(title, value), _own_doc(value)


def _own_doc(value: object) -> str:
    doc = getattr(value, "__doc__", None)
    return inspect.cleandoc(doc) if isinstance(doc, str) else ""


def _titled(title: str, function: object) -> str:
    signature = getattr(function, "__text_signature__", None)
    if not isinstance(signature, str):
        return f"{title}()"
    return title + re.sub(r"^\(\$\w+(, /)?(, )?", "(", signature)
