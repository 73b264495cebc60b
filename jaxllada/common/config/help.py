"""The text of `--help`: every key with its type, default and meaning, by group."""

import inspect
import shutil
import textwrap

from jaxllada.common.config.fields import MISSING, Key, short


def _default(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_default(v) for v in value)}]"
    return str(value) or '""'


def help_text(keys: dict[str, Key], *, prog: str, description: str) -> str:
    """Returns the help in the width of the terminal, at most 100 columns."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    places = [
        key.name.upper() if key.is_required else f"[{key.name.upper()}]"
        for key in keys.values()
        if key.positional
    ]
    usage = " ".join(["usage:", prog, *places, "[CONFIG.yaml]", "[--key value | key=value ...]"])
    lines = [usage, ""]
    for paragraph in inspect.cleandoc(description).split("\n\n"):
        lines += [*_paragraph(paragraph, width), ""]
    by_group: dict[str, list[Key]] = {}
    for key in keys.values():
        by_group.setdefault(key.group, []).append(key)
    for group, members in by_group.items():
        lines.append(f"{group or 'keys'}:")
        for key in members:
            lines += _entry(key, width)
        lines.append("")
    lines += ["  --print_config", "        print the merged configuration as YAML and stop"]
    return "\n".join(lines)


def _paragraph(text: str, width: int) -> list[str]:
    if text.startswith("    "):
        return text.split("\n")
    return textwrap.wrap(" ".join(text.split()), width)


def _entry(key: Key, width: int) -> list[str]:
    default = "required" if key.default is MISSING else f"default: {_default(key.default)}"
    head = f"  --{key.name} {short(key.hint)}"
    wrap = {"initial_indent": " " * 8, "subsequent_indent": " " * 8, "width": width}
    text = f"{key.help} ({default})" if key.help else f"({default})"
    return [head, *textwrap.wrap(text, **wrap)]
