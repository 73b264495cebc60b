"""A small tokenizer, instances as lm_eval makes them, and an engine that says what it is told."""

import dataclasses
from collections.abc import Callable

from jaxllada.common.config.presets import PRESETS
from jaxllada.common.engine import Generation
from jaxllada.common.scores import QuestionScores, Score
from jaxllada.common.tokenizer import Tokenizer

TEXTS = ["the cat sat on the mat and the dog sat on the log\n\nQuestion: is it a cat? Answer: no"]


@dataclasses.dataclass
class Instance:
    """What the requests of an evaluation are made of."""

    args: tuple
    doc_id: int = 0
    task_name: str = "task"


def small_tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 20, 300)


def small_model(tokenizer, max_sequence_length=64):
    return dataclasses.replace(
        PRESETS["tiny"], vocab_size=tokenizer.vocab_size, embedding_size=tokenizer.vocab_size,
        mask_token_id=tokenizer.mask_id, eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id, max_sequence_length=max_sequence_length,
    )  # fmt: skip


class Told:
    """Answers prompts by a function of their text, and scores options by one of their tokens."""

    def __init__(self, tokenizer, model, say: Callable[[str], list[int]] = lambda _: []):
        self.tokenizer, self.config, self._say = tokenizer, model, say
        self.calls = []

    def generate(self, prompts, config, seed=0, *, first_row=0, should_stop=None):
        self.calls.append((prompts, config, seed, first_row, should_stop))
        found = []
        for prompt in prompts:
            said = self._say(self.tokenizer.decode(prompt))[: config.gen_length]
            tokens = said + [self.tokenizer.eos_id] * (config.gen_length - len(said))
            found.append(Generation(tokens, None, nfe=6, seconds=2.0))
        return found

    def score(self, questions, config, *, first=0):
        self.calls.append((questions, config))
        return [
            QuestionScores(
                tuple(
                    Score(-float(sum(option)), 0.5, config.mc_num, 3, 1.0, len(option) == 1)
                    for option in question.options
                ),
                0, 0,
            )
            for question in questions
        ]  # fmt: skip
