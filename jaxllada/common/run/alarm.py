"""An alarm for a model that starts to answer with end tokens.

Padding is trained on, so most answer tokens a model sees may be EOS, and it can learn to put them
everywhere (LLaDA, arXiv:2502.09992v3, section 2.3 pads with EOS; its appendix on sampling holds
them back). Two signs are watched: what the model would put in place of masked content, and what it
answers to the probe questions. The alarm is given once in a run.
"""

from typing import Any

from jaxllada.common.run.samples import Samples

SHARE = 0.5
"""Share of masked content (or of probe answers) from which on end tokens are a flood."""
LINES = 5
"""Lines of the log in a row whose mean is looked at."""


class EosAlarm:
    """Looks at every line and every page of samples; returns what to tell, or None."""

    def __init__(self, pad_policy: str = "", group_by_length: bool = False):
        self.pad_policy, self.group_by_length = pad_policy, group_by_length
        self.recent: list[float] = []
        self.is_given = False

    def look(self, line: dict[str, Any]) -> str | None:
        """Takes a line of the log."""
        share = line.get("content_as_eos")
        if share is None or self.is_given:
            return None
        self.recent = [*self.recent[1 - LINES :], share]
        mean = sum(self.recent) / len(self.recent)
        if len(self.recent) < LINES or mean < SHARE:
            return None
        return self._given(f"EOS is the first choice for {100 * mean:.0f} % of the masked content")

    def hear(self, page: Samples) -> str | None:
        """Takes a page of samples."""
        if self.is_given or not page.answers or page.empty <= SHARE * page.answers:
            return None
        return self._given(f"{page.empty} of {page.answers} probe answers begin with an end token")

    def _given(self, sign: str) -> str:
        self.is_given = True
        cures = [] if self.group_by_length else ["group_by_length=true (less padding)"]
        cures += [] if self.pad_policy == "ignore" else ["pad_policy=eos_capped:8 or ignore"]
        training = " and ".join(cures)
        return (
            f"the model starts to answer with end tokens: {sign}. "
            + (f"Train with {training}; " if training else "")
            + "sample with confidence_eos_eot_inf=true or in shorter blocks"
        )

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {"recent": self.recent, "is_given": self.is_given}

    def load(self, state: dict[str, Any]) -> None:
        """Takes up the state of a checkpoint."""
        self.recent = list(state.get("recent", []))
        self.is_given = bool(state.get("is_given", False))
