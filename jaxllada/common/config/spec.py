"""Short texts for small frozen dataclasses: `threshold:0.9`, `dream:entropy,alg_temp=0.1`.

    NAME[:VALUE][,VALUE...][,key=value...]

Plain values fill the fields in their order. The same text serves the command line, YAML and Python,
and `to_spec` writes it back without what has its default.
"""

import dataclasses
import re
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from jaxllada.common.errors import UserError, nearest

T = TypeVar("T")


def from_spec(key: str, value: Any, kinds: Mapping[str, type[T]]) -> T:
    """Builds the dataclass that a text names; an instance of one of `kinds` is returned as it is.

    Args:
        key: name of the option, for messages.
        value: the text, or the dataclass.
        kinds: the dataclass of each name.

    Raises:
        UserError: an unknown name, field or value, and whatever the dataclass refuses.
    """
    if isinstance(value, tuple(kinds.values())):
        return value
    if not isinstance(value, str):
        raise UserError(f"{key}={value!r} is not text; expected one of {', '.join(kinds)}")
    name, *rest = (part.strip() for part in re.split("[:,]", value, maxsplit=1))
    if name not in kinds:
        hint = nearest(name, kinds) or f"; choose from {', '.join(kinds)}"
        raise UserError(f"{key}={value} is unknown{hint}")
    kind = kinds[name]
    types = typing.get_type_hints(kind)
    fields = {field.name: types[field.name] for field in dataclasses.fields(typing.cast(Any, kind))}
    given: dict[str, Any] = {}
    free = list(fields)
    for part in [part.strip() for text in rest for part in text.split(",")]:
        label, equals, text = part.partition("=")
        if not equals:
            label, text = free[0] if free else "", part
        label = label.strip()
        if label not in fields or label in given:
            raise UserError(f"{key}={value}: '{part}' {_problem(name, label, given, fields)}")
        given[label] = _read(key, value, label, text.strip(), fields[label])
        free.remove(label)
    missing = [f.name for f in dataclasses.fields(typing.cast(Any, kind)) if _is_missing(f, given)]
    if missing:
        raise UserError(f"{key}={value} lacks {missing[0]}: write {name}:{missing[0].upper()}")
    return kind(**given)


def to_spec(value: Any, kinds: Mapping[str, type]) -> str:
    """Writes a dataclass as the text that `from_spec` reads back.

    Defaults are left out, but for a number with a fraction that comes first: it is what a reader
    looks for in `threshold:0.9`.
    """
    name = next(name for name, kind in kinds.items() if type(value) is kind)
    parts = []
    in_order = True
    for field in dataclasses.fields(value):
        own = getattr(value, field.name)
        is_default = field.default is not dataclasses.MISSING and own == field.default
        if is_default and not (isinstance(own, float) and in_order and not parts):
            in_order = False
            continue
        text = str(own).lower() if isinstance(own, bool) else str(own)
        parts.append(text if in_order else f"{field.name}={text}")
    return name + (":" + ",".join(parts) if parts else "")


def _is_missing(field: Any, given: Mapping[str, Any]) -> bool:
    return field.default is dataclasses.MISSING and field.name not in given


def _problem(name: str, label: str, given: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    if label in given:
        return f"gives {label} twice"
    if not label or not fields:
        return f"is too much; {name} takes {', '.join(fields) or 'no values'}"
    return f"is unknown{nearest(label, fields) or f'; {name} takes ' + ', '.join(fields)}"


def _read(key: str, value: str, label: str, text: str, hint: Any) -> Any:
    """Converts one value to the type of its field: a choice, text, a flag or a number."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        if text in options:
            return text
        near = nearest(text, options) or f"; choose from {', '.join(options)}"
        raise UserError(f"{key}={value}: {label}={text} is unknown{near}")
    if type(None) in options:
        if text in ("none", "null"):
            return None
        hint = next(option for option in options if option is not type(None))
    if hint is str:
        return text
    if hint is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise UserError(f"{key}={value}: {label}={text} must be true or false")
    try:
        return hint(text)
    except ValueError:
        word = "a whole number" if hint is int else "a number"
        raise UserError(f"{key}={value}: {label}={text} must be {word}") from None
