"""The text of `--help`: every key with its type, default and meaning, by group."""

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
    for paragraph in description.strip().split("\n\n"):
        lines += [*_paragraph(paragraph, width), ""]
    group = None
    for i, key in enumerate(keys.values()):
        if key.group != group:
            group = key.group
            lines += [*([""] if i else []), f"{group or 'keys'}:"]
        elif key.opens_paragraph:
            lines.append("")
        lines += _entry(key, width)
    lines += ["", "  --print_config"]
    lines += ["        Print the merged configuration as YAML and stop."]
    return "\n".join(lines)


def _paragraph(text: str, width: int) -> list[str]:
    if text.startswith(("    ", "jaxllada ")):  # commands
        return [f"    {line.strip()}" for line in text.split("\n")]
    return textwrap.wrap(" ".join(text.split()), width)


def _entry(key: Key, width: int) -> list[str]:
    default = "required" if key.default is MISSING else f"default {_default(key.default)}"
    head = f"  --{key.name} {short(key.hint)}"
    wrap = {"initial_indent": " " * 8, "subsequent_indent": " " * 8, "width": width}
    return [f"{head:<52}  {default}", *textwrap.wrap(key.help, **wrap)]
