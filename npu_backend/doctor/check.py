"""One finding of `doctor`: what was looked at, how it is, and how to mend it."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Check:
    """The result of one check. `fix` is empty unless something is wrong or could be better."""

    name: str
    status: Status
    text: str
    fix: str = ""


def line(check: Check) -> str:
    """One check as text, with its fix below."""
    mark = {"ok": " ok ", "warn": "warn", "fail": "FAIL", "skip": " -- "}[check.status]
    text = f"[{mark}] {check.name}: {check.text}"
    return text + (f"\n       fix: {check.fix}" if check.fix else "")
