"""Rows that cannot be trained on: counted by reason and named, or refused, as configured."""

from collections.abc import Callable
from typing import Any, Literal

from jaxllada.common.errors import UserError
from jaxllada.common.notices import warn

OnBadRow = Literal["skip", "error"]
_EXAMPLES = 5
BROKEN = "\0broken"
"""Key of a row that a reader could not read; its value says why."""


class BadRow(UserError):
    """One row is not right; `reason` names the kind of trouble, the message says what it is.

    `is_meant` where a setting asks for such rows to be left out: they are never refused.
    """

    def __init__(self, reason: str, detail: str, *, is_meant: bool = False):
        super().__init__(detail)
        self.reason, self.is_meant = reason, is_meant


class BadRows:
    """What was left out of one split so far, of `read` rows; `tells` warns of the first ones."""

    def __init__(self, policy: OnBadRow = "skip", *, tells: bool = False):
        self.policy: OnBadRow = policy
        self.tells, self.read = tells, 0
        self.left_out: dict[str, int] = {}
        self.examples: list[str] = []

    def note(self, where: Callable[[], str], error: BadRow) -> None:
        """Counts a row, or raises a UserError that names it (`on_bad_row: error`)."""
        if self.policy == "error" and not error.is_meant:
            raise UserError(f"{where()}: {error} (on_bad_row=skip leaves such rows out)") from None
        self.left_out[error.reason] = self.left_out.get(error.reason, 0) + 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{where()}: {error}")
            if self.tells:
                warn(f"{self.examples[-1]}; left out")

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "rows_read": self.read,
            "dropped": sum(self.left_out.values()),
            "left_out": dict(self.left_out),
            "examples": self.examples,
        }


def added(many: list[dict[str, Any]]) -> dict[str, Any]:
    """Joins the `facts` of the pieces of a split."""
    left_out: dict[str, int] = {}
    for facts in many:
        for reason, count in facts["left_out"].items():
            left_out[reason] = left_out.get(reason, 0) + count
    examples = [text for facts in many for text in facts["examples"]][:_EXAMPLES]
    dropped = sum(left_out.values())
    read = sum(facts["rows_read"] for facts in many)
    return {"rows_read": read, "dropped": dropped, "left_out": left_out, "examples": examples}


def told(source: str, split: str, about: dict[str, Any]) -> str:
    """Says what was left out of a split in one line; empty where nothing was."""
    if not about.get("dropped"):
        return ""
    total = about["rows_read"]
    kinds = ", ".join(f"{count:,} {reason}" for reason, count in about["left_out"].items())
    return (
        f"{source} {split}: {about['dropped']:,} of {total:,} rows left out ({kinds}); "
        f"the first: {about['examples'][0]}"
    )


def readable(row: dict[str, Any]) -> dict[str, Any]:
    """Returns the row, or raises BadRow where its reader could not read it."""
    if BROKEN in row:
        raise BadRow("broken line", row[BROKEN])
    return row
