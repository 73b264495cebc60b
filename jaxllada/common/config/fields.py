"""What a configuration class says about its keys: type, default, help, group.

A configuration is a flat frozen dataclass. The help of a key is the string below its field, or
`field(metadata={"help": ...})`; its group is `metadata["group"]`, else the class that first has it.
"""

import ast
import dataclasses
import functools
import inspect
import textwrap
import types
import typing
from typing import Any, Literal

MISSING = dataclasses.MISSING


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a configuration."""

    name: str
    hint: Any
    default: Any
    help: str
    group: str
    positional: bool
    opens_paragraph: bool
    """Whether a blank line sets it off from the key before."""

    @property
    def is_required(self) -> bool:
        return self.default is MISSING

    @property
    def members(self) -> tuple[Any, ...]:
        """The members of a union, or the type itself."""
        if typing.get_origin(self.hint) in (typing.Union, types.UnionType):
            return typing.get_args(self.hint)
        return (self.hint,)

    @property
    def is_flag(self) -> bool:
        """Whether `--key` alone means true."""
        return bool in self.members

    @property
    def is_sequence(self) -> bool:
        return any(typing.get_origin(m) in (list, tuple) for m in self.members)


@functools.cache
def keys_of(cls: type) -> dict[str, Key]:
    """Returns the keys of a dataclass in the order of definition."""
    hints = typing.get_type_hints(cls)
    docs, home, first = {}, {}, set()
    for base in reversed(cls.__mro__[:-1]):
        found, opening = _read_body(base)
        docs |= found
        first |= opening
        for name in vars(base).get("__annotations__", {}):
            home.setdefault(name, _title(base) if base is not cls else "")
    keys = {}
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        default = field.default
        if field.default_factory is not MISSING:
            default = field.default_factory()
        keys[field.name] = Key(
            name=field.name,
            hint=hints[field.name],
            default=default,
            help=field.metadata.get("help") or docs.get(field.name, ""),
            group=field.metadata.get("group", home.get(field.name, "")),
            positional=bool(field.metadata.get("positional")),
            opens_paragraph=field.name in first,
        )
    return keys


def _title(cls: type) -> str:
    text = vars(cls).get("__doc__") or ""
    return "" if text.startswith(f"{cls.__name__}(") else text.strip().split("\n")[0].rstrip(".")


def _read_body(cls: type) -> tuple[dict[str, str], set[str]]:
    """Reads a class body: the string below each field, and the fields after a blank line."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
        tree = ast.parse(source)
    except (OSError, TypeError, SyntaxError):
        return {}, set()
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    lines = source.splitlines()
    docs, opening, number = {}, set(), 0
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        number += 1
        if not lines[statement.lineno - 2].strip():
            opening.add(statement.target.id)
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    # Where a blank line precedes every field it groups nothing.
    return docs, opening if len(opening) < number else set()


_WORDS = {bool: "true or false", str: "text", type(None): "null", Any: "anything"}


def expected(hint: Any) -> str:
    """Says a type in words: `one of a, b`, `int or null`, `list of float`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        values = ", ".join(str(a) for a in arguments)
        return f"one of {values}" if len(arguments) > 1 else values
    if origin in (typing.Union, types.UnionType):
        return " or ".join(expected(a) for a in arguments)
    if origin is tuple and Ellipsis not in arguments:
        return f"[{', '.join(expected(a) for a in arguments)}]"
    if origin in (list, tuple):
        return f"list of {expected(arguments[0])}"
    if origin is dict:
        return f"mapping of {expected(arguments[0])} to {expected(arguments[1])}"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def short(hint: Any) -> str:
    """Says a type in a few characters, for the help: `int|null`, `xla|cudnn`, `float,...`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "|".join(str(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return "|".join(short(a) for a in arguments if a is not type(None))
    if origin is tuple and Ellipsis not in arguments:
        return ",".join(short(a) for a in arguments)
    if origin in (list, tuple):
        return f"{short(arguments[0])},..."
    if origin is dict:
        return f"{{{short(arguments[0])}: {short(arguments[1])}}}"
    if hint is bool:
        return "true|false"
    return "text" if hint is str else getattr(hint, "__name__", str(hint))
