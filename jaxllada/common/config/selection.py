"""Which predictions of a step are kept, and how many: the rules of the option `selection`."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Fixed:
    """A number per step that is fixed in advance."""


Selection = Fixed

SELECTIONS: Mapping[str, type[Selection]] = {"fixed": Fixed}
"""Each rule by the name it has in a specification (`common.config.spec`)."""
