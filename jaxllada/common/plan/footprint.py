"""The memory of one device at the moment of its peak, by what it is spent on."""

from collections.abc import Mapping
from dataclasses import dataclass

TERMS = (
    "parameters", "optimizer", "average", "gradients", "activations", "logits", "buffers",
    "communication",
)  # fmt: skip
"""`average`: exponential average of the weights. `logits`: what the loss holds beside its inputs.
`buffers`: gathered and converted weights, workspace of the update, batches. `communication`: what
the library of collectives takes for itself."""

Phase = Mapping[str, float]
"""Bytes by term; terms left out are 0."""


@dataclass(frozen=True)
class Footprint:
    """Peak of one device: in which part of the step it comes, and bytes by term."""

    phase: str
    terms: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes in use at the peak."""
        return sum(self.terms.values())


def peak(resident: Phase, phases: Mapping[str, Phase]) -> Footprint:
    """Returns the largest phase on top of what is there all the time."""
    name = max(phases, key=lambda name: sum(phases[name].values()))
    unknown = {*resident, *phases[name]} - set(TERMS)
    assert not unknown, unknown
    terms = {term: round(resident.get(term, 0) + phases[name].get(term, 0)) for term in TERMS}
    return Footprint(name, terms)
