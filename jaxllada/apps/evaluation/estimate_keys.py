"""The likelihood keys of the verb `eval`: what a recipe says, and what is given beside it.

A key that is not given is null here; then the recipe decides, and where it says nothing the default
of `LikelihoodConfig`. Guidance, attention and the seed are keys that sampling has as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from jaxllada.common.config.likelihood import LikelihoodConfig, Method, Reuse
from jaxllada.common.errors import UserError

SHARED = ("batch_size", "cfg_scale", "seed", "attention", "block_length")
"""Keys of `LikelihoodConfig` that go by another name here, or belong to sampling too."""
USUAL_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class EstimateKeys:
    """How likelihoods are estimated, for tasks that compare options."""

    mc_num: int | None = None
    """Masks drawn per answer, the most with stop_level; 128 by default, 1 is exact for answers of
    one token."""
    mc_batch_size: int | None = None
    """Masks per round (the released evaluation calls it batch_size); their sizes are spread evenly
    over the answer. Divides mc_num; 16, or the largest divisor below, by default."""
    method: Method | None = None
    """monte_carlo (default): the bound of Eq. 6. exact: its expectation, for short answers.
    confidence: the surest hidden token is scored and shown, again and again; no likelihood."""
    common_random_numbers: bool | None = None
    """All options of a question hide the same positions (default)."""
    stop_level: float | None = None
    """Stop drawing for a question once its best option is known at this confidence; 0, the
    default: never."""
    greedy_check: bool | None = None
    """Also tell whether decoding one surest token at a time gives the answer; off by default. The
    accuracy of LAMBADA and its like is made of it."""
    is_check_greedy: bool | None = None
    """Another name for greedy_check."""
    padd_eos: bool | None = None
    """Show an end-of-sequence token behind the answer, as iLLaDA's evaluation does."""
    add_bos: bool | None = None
    """Begin every prompt of a likelihood with the beginning-of-sequence token."""
    reuse: Reuse | None = None
    """none (default), prompt: keys and values of the prompt come from one pass, fast and
    approximate, or corrected: the same, unbiased again."""
    rows_per_call: int | None = None
    """Masked copies per model call, of whichever questions; 16, or mc_batch_size where that is
    more, by default. It changes no result."""

    def estimate(
        self, recipe: Mapping[str, Any], others: Mapping[str, Any]
    ) -> tuple[LikelihoodConfig, bool]:
        """The options, and whether prompts begin with the beginning-of-sequence token.

        `recipe` holds keys of `LikelihoodConfig` and `add_bos`; `others` those of `SHARED` that are
        given, which win. Raises `UserError`.
        """
        values = dict(recipe)
        add_bos = values.pop("add_bos", False) if self.add_bos is None else self.add_bos
        values.pop("add_bos", None)
        greedy = one_of_two(self, "greedy_check", "is_check_greedy")
        for key in fields(LikelihoodConfig):
            value = None if key.name in SHARED else getattr(self, key.name)
            if value is not None:
                values[key.name] = value
        if greedy is not None:
            values["greedy_check"] = greedy
        values |= {key: value for key, value in others.items() if value is not None}
        if values.get("attention") != "block_causal":
            values.pop("block_length", None)
        if self.mc_batch_size is not None:
            values["batch_size"] = self.mc_batch_size
        elif self.mc_num is not None or "batch_size" not in values:
            most = values.get("batch_size", LikelihoodConfig.batch_size)
            masks = values.get("mc_num", LikelihoodConfig.mc_num)
            if masks > 0:
                values["batch_size"] = max(n for n in range(1, most + 1) if masks % n == 0)
        if not values.get("rows_per_call"):
            values["rows_per_call"] = max(USUAL_ROWS, values.get("batch_size", 0))
        return LikelihoodConfig(**values), add_bos


def one_of_two(keys: Any, name: str, other: str) -> Any:
    """The value of a key with two names; None where neither is given."""
    first, second = getattr(keys, name), getattr(keys, other)
    if None not in (first, second) and first != second:
        raise UserError(
            f"{name}={first} and {other}={second} are two names of one setting: give one of them"
        )
    return second if first is None else first
