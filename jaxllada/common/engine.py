"""What a program that talks to a model needs to know of it: token lists in, token lists out.

Terminal chat, playback, servers and evaluation use this protocol only, so each works with every
backend that implements it.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Int

from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.errors import UserError
from jaxllada.common.scores import Question, QuestionScores
from jaxllada.common.trace import GIVEN, Trace

ShouldStop = Callable[[Sequence[int]], bool]
"""Whether an answer is over, given the tokens of its finished blocks."""


@dataclass(frozen=True)
class Generation:
    """One sampled answer."""

    tokens: list[int]
    """All `gen_length` answer tokens, end tokens included; under `infill` the row from its first
    mask on."""
    trace: Trace
    """Record of this row."""
    nfe: int
    """Model calls of the batch the row was part of, those that only look for lengths included."""
    seconds: float
    """Wall time of the batch, compilation included if it was needed."""
    end: int | None = None
    """Place of the first end token; None if the answer has none."""

    @property
    def num_tokens(self) -> int:
        """Tokens before the end of the answer."""
        return len(self.tokens) if self.end is None else self.end


@dataclass(frozen=True)
class Update:
    """The answers of a batch in the middle of sampling."""

    tokens: Int[np.ndarray, "B N"]
    """Answers as far as their canvases reach by now; the mask id where nothing is committed yet
    (int32)."""
    step: int
    """Steps done."""
    total_steps: int
    """Steps planned; a batch that stops early does fewer."""


class Engine(Protocol):
    """A model with its backend."""

    @property
    def config(self) -> ModelConfig:
        """Shapes and special ids of the model."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        config: SamplingConfig,
        seed: int = 0,
        on_update: Callable[[Update], None] | None = None,
        *,
        first_row: int | Sequence[int] = 0,
        should_stop: ShouldStop | None = None,
    ) -> list[Generation]:
        """Answers every prompt; prompts may differ in length.

        Row i draws from (seed, first_row + i) and does not depend on the others, so cutting a list
        into batches changes nothing; a list gives every row a number of its own. `on_update` is
        called after every step. `should_stop` is asked after every block, with a row's tokens so
        far, whether the answer is over; what is behind becomes end tokens. Raises `UserError` as
        `check_prompts` does.
        """
        ...

    def log_likelihood(
        self, prompt: Sequence[int], answer: Sequence[int], config: LikelihoodConfig
    ) -> float:
        """Estimates the bound on log p(answer | prompt) in nats (Eq. 6), with the config's seed."""
        ...

    def score(
        self, questions: Sequence[Question], config: LikelihoodConfig, *, first: int = 0
    ) -> list[QuestionScores]:
        """Scores every option of every question, in batches.

        Question i draws from (seed, first + i), or from (seed, its own number), so cutting a list
        changes nothing. Raises `UserError` for tokens that the model cannot be asked.
        """
        ...


def check_prompts(
    prompts: Sequence[Sequence[int]], config: SamplingConfig, model: ModelConfig
) -> None:
    """Raises `UserError` for a prompt that cannot be answered, before anything is compiled."""
    if not prompts:
        raise UserError("prompts=[] is empty; at least one prompt is needed")
    for row, prompt in enumerate(prompts):
        total = len(prompt) + config.gen_length
        if total > model.max_sequence_length:
            raise UserError(
                f"prompt {row} has {len(prompt)} tokens: with gen_length={config.gen_length} that"
                f" is {total}, more than max_sequence_length={model.max_sequence_length}"
            )
        for position, token in enumerate(prompt):
            if not 0 <= token < model.rows:
                raise UserError(
                    f"prompt {row} holds id {token} at position {position},"
                    f" outside the {model.rows} rows of the embedding"
                )


def row_numbers(first_row: int | Sequence[int], count: int) -> list[int]:
    """The numbers that so many rows draw by."""
    if isinstance(first_row, int):
        return list(range(first_row, first_row + count))
    if len(first_row) != count:
        raise UserError(f"first_row lists {len(first_row)} numbers for {count} prompts")
    return list(first_row)


def batch_of(
    prompts: Sequence[Sequence[int]], model: ModelConfig
) -> tuple[Int[np.ndarray, "B P"], Int[np.ndarray, "B P"]]:
    """Puts prompts behind padding: int32 tokens, and 1 where they are tokens."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = np.full((len(prompts), longest), model.pad_token_id, np.int32)
    visible = np.zeros(tokens.shape, np.int32)
    for row, prompt in enumerate(prompts):
        start = longest - len(prompt)
        tokens[row, start:] = prompt
        visible[row, start:] = 1
    return tokens, visible


def generations(
    trace: Trace, nfe: int, seconds: float, end_ids: Collection[int]
) -> list[Generation]:
    """The answers of a batch by row; `end_ids` are those that an answer ends with."""
    return [_generation(trace[row], nfe, seconds, end_ids) for row in range(len(trace))]


def _generation(trace: Trace, nfe: int, seconds: float, end_ids: Collection[int]) -> Generation:
    is_given = trace.order[0] == GIVEN
    first = int(is_given.argmin()) if len(is_given) else 0  # what is given before is the prompt
    trace = dataclasses.replace(
        trace,
        prompt=np.concatenate([trace.prompt, trace.tokens[:, :first]], axis=1),
        tokens=trace.tokens[:, first:],
        order=trace.order[:, first:],
        confidence=trace.confidence[:, first:],
    )
    is_end = np.isin(trace.tokens[0], list(end_ids)) & ~is_given[first:]
    end = int(is_end.argmax()) if is_end.any() else None
    return Generation(trace.tokens[0].tolist(), trace, nfe, seconds, end)
