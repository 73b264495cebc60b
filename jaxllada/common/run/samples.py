"""Pages of sampled text during a run: continuations of texts, or answers to probe questions."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxllada.common.answers import until_end
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.data.rows import as_rows
from jaxllada.common.engine import Engine
from jaxllada.common.run.inputs import has_answers
from jaxllada.common.tokenizer import Tokenizer

_OWN_QUESTIONS = 2


class Samples(NamedTuple):
    """A page of texts; `empty` of its `answers` to questions begin with an end token."""

    text: str
    answers: int = 0
    empty: int = 0


class Probes(NamedTuple):
    """What is asked during a run: token lists, and whether they end where an answer begins."""

    prompts: list[list[int]]
    are_questions: bool


def probes_of(config: TrainConfig, tokenizer: Tokenizer, rows: dict[str, Any]) -> Probes:
    """Returns the prompts of `sample_prompts`, in the chat template where `rows` have answers.

    Without any: one text from nothing, or the questions of the first rows of the test split (of
    the training split where there is no other).
    """
    if not has_answers(rows["train"]):
        # An empty prompt is the start of a document, which follows the end of another.
        texts = config.sample_prompts or ("",)
        return Probes([tokenizer.encode(text) or [tokenizer.eos_id] for text in texts], False)
    if config.sample_prompts:
        asked = [[{"role": "user", "content": text}] for text in config.sample_prompts]
        return Probes([tokenizer.chat(messages) for messages in asked], True)
    known = rows.get("test", rows["train"])
    if callable(known):  # a stream
        return Probes([], True)
    known = as_rows(known)
    found = [known[i] for i in range(min(_OWN_QUESTIONS, len(known)))]
    firsts = [row.turn(0) if row.turns else row for row in found]
    prompts = [row.tokens[: int(np.argmax(row.maskable))].tolist() for row in firsts]
    return Probes([ids for ids in prompts if ids], True)


def page_writer(
    config: TrainConfig, tokenizer: Tokenizer, probes: Probes
) -> Callable[[Engine], Samples] | None:
    """Returns a function from an engine to a page, with the same noise every time; or None.

    Questions are answered with the most likely tokens, texts continued with some chance in them.
    """
    if not (config.sample_length and probes.prompts):
        return None
    length = config.sample_length
    options = SamplingConfig(
        steps=length,
        gen_length=length,
        block_length=math.gcd(length, 32),
        temperature=0.0 if probes.are_questions else 0.5,
    )

    def write(engine: Engine) -> Samples:
        found = [engine.generate([ids], options)[0].tokens for ids in probes.prompts]
        if not probes.are_questions:
            texts = [
                tokenizer.decode([*ids, *tokens])
                for ids, tokens in zip(probes.prompts, found, strict=True)
            ]
            return Samples("\n\n----\n\n".join(texts) + "\n")
        answers = [until_end(tokens, tokenizer) for tokens in found]
        texts = [
            _exchange(tokenizer, ids, answer)
            for ids, answer in zip(probes.prompts, answers, strict=True)
        ]
        empty = sum(not answer for answer in answers)
        return Samples("\n\n----\n\n".join(texts) + "\n", len(answers), empty)

    return write


def _exchange(tokenizer: Tokenizer, question: Sequence[int], answer: Sequence[int]) -> str:
    """A question and its answer as text, without the tokens of the template."""
    asked = tokenizer.decode(question, skip_special_tokens=True).strip()
    # What is left of the headers of the template are the roles.
    asked = asked.removeprefix("user").removesuffix("assistant").strip()
    said = tokenizer.decode(answer).strip() or "(nothing but blanks)"
    said = said if answer else "(nothing: it begins with an end token)"
    return "> " + asked.replace("\n", "\n> ") + f"\n{said}"
