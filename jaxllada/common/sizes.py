"""Sizes in bytes as people write them."""

import re

from jaxllada.common.errors import UserError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(text: str, key: str) -> int:
    """Reads `5GB`, `512MiB`, `1.5G` or a number of bytes; `key` names the setting in errors."""
    match = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)\s*(?:([kmgt]i?)?b?)?", text.strip(), re.IGNORECASE)
    size = float(match[1]) * (_UNITS | _BINARY)[(match[2] or "").upper()] if match else 0
    if size < 1:
        raise UserError(f"{key}={text}: expected a size such as 5GB or 512MiB")
    return round(size)


def show_bytes(size: float) -> str:
    """Writes a size with three digits, in powers of 1000 as disks are sold."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.3g} {units[0]}" if size < 1000 else f"{size:.0f} {units[0]}"
