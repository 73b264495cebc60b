"""Measures sampling settings against a slow reference decode: what `tune` runs and sums up.

Throughput counts response tokens alone, those before the first end token; `agreement` is the share
of positions at which a response equals the reference's, over the longer of the two.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from jaxllada.common.answers import Decoder, until_end
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.engine import Engine, Generation

SWEPT = ("steps", "block_length", "selection", "cache", "smoothing")


@dataclass(frozen=True)
class Outcome:
    """One setting on all prompts."""

    agreement: float
    """Share of response tokens equal to the reference's."""
    exact: float
    """Share of responses equal from the first to the last token."""
    tokens: int
    """Response tokens of all prompts."""
    nfe: int
    """Model calls, summed over prompts; a batch counts once for each of its rows."""
    seconds: float
    """Wall time of all batches, the fastest of the rounds of each."""

    @property
    def tokens_per_call(self) -> float:
        return self.tokens / max(1, self.nfe)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(1e-9, self.seconds)


@dataclass(frozen=True)
class Run:
    """The answers of one setting."""

    responses: list[list[int]]
    generations: list[Generation]
    seconds: float

    def against(self, reference: Sequence[Sequence[int]]) -> Outcome:
        """Compares with the responses of the reference, prompt by prompt."""
        pairs = list(zip(self.responses, reference, strict=True))
        positions = sum(max(len(ours), len(theirs)) for ours, theirs in pairs)
        same = sum(a == b for ours, theirs in pairs for a, b in zip(ours, theirs, strict=False))
        return Outcome(
            agreement=same / positions if positions else 1.0,
            exact=sum(list(ours) == list(theirs) for ours, theirs in pairs) / len(pairs),
            tokens=sum(len(response) for response in self.responses),
            nfe=sum(generation.nfe for generation in self.generations),
            seconds=self.seconds,
        )


def reference_config(config: SamplingConfig) -> SamplingConfig:
    """The slow decode on the same canvas: one token per model call, nothing remembered."""
    usual = SamplingConfig()
    steps = config.gen_length if config.shares_steps else config.block_length
    kept = {key: getattr(usual, key) for key in ("selection", "cache", "smoothing")}
    return replace(config, steps=steps, **kept)


def settings(
    config: SamplingConfig, sweeps: Mapping[str, Sequence[Any]]
) -> Iterator[tuple[dict[str, Any], SamplingConfig | str]]:
    """Every combination of the swept keys: its values, and the config or why it cannot be run.

    `sweeps` gives the values of keys of `SamplingConfig`; a key without values keeps that of
    `config`.
    """
    from itertools import product

    from jaxllada.common.errors import UserError

    values = [sweeps.get(key) or [getattr(config, key)] for key in SWEPT]
    for combination in product(*values):
        point: dict[str, Any] = dict(zip(SWEPT, combination, strict=True))
        try:
            yield point, replace(config, **point)
        except UserError as error:
            yield point, str(error)


def answer(
    engine: Engine,
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    *,
    seed: int = 0,
    batch_size: int = 1,
    rounds: int = 2,
) -> Run:
    """Answers all prompts, each batch `rounds` times: the first call may have to compile."""
    generations: list[Generation] = []
    seconds = 0.0
    for first in range(0, len(prompts), batch_size):
        batch = prompts[first : first + batch_size]
        calls = [engine.generate(batch, config, seed, first_row=first) for _ in range(rounds)]
        generations += calls[-1]
        seconds += min(call[0].seconds for call in calls)
    responses = [until_end(generation.tokens, decoder) for generation in generations]
    return Run(responses, generations, seconds)


def pareto_front(outcomes: Sequence[Outcome]) -> list[int]:
    """Indices of the outcomes that no other beats in speed and agreement, the fastest first."""
    order = sorted(
        range(len(outcomes)), key=lambda i: (-outcomes[i].tokens_per_second, -outcomes[i].agreement)
    )
    front: list[int] = []
    for i in order:
        if not front or outcomes[i].agreement > outcomes[front[-1]].agreement:
            front.append(i)
    return front


def choose(outcomes: Sequence[Outcome], min_agreement: float) -> int | None:
    """Index of the fastest outcome that agrees well enough; None where there is none."""
    fit = [i for i in pareto_front(outcomes) if outcomes[i].agreement >= min_agreement]
    return fit[0] if fit else None


def row(point: Mapping[str, Any], outcome: Outcome) -> dict[str, Any]:
    """One line of results.jsonl."""
    return {
        **point,
        **asdict(outcome),
        "tokens_per_call": outcome.tokens_per_call,
        "tokens_per_second": outcome.tokens_per_second,
    }
