"""Requests for likelihoods: the options of a question together, and whole texts in windows.

A harness hands continuations over one by one. Those of one document with one context become one
question, so that its options hide the same positions, share reused prompts and may stop early.
Masks are drawn by the number of the document in its task: `limit`, parts and the order of tasks
change no value, and the verb `score` finds the same ones for the same questions.
"""

from array import array
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from jaxllada.apps.evaluation.answers_kept import KeptAnswers, Record, key_of
from jaxllada.apps.evaluation.asked import Manner, Request
from jaxllada.apps.option_tokens import beginning, encode_options
from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.engine import Engine
from jaxllada.common.errors import UserError
from jaxllada.common.scores import Question, QuestionScores
from jaxllada.common.tokenizer import Tokenizer

MOST_QUESTIONS = 64
MOST_VIEWS = 1024
"""Questions and masked copies that are handed to the engine together, and kept together."""
WINDOW = 1 << 32
"""Numbers of documents between those of the windows of one."""
MOST_OPTIONS = 256


class _Asked:
    """Questions under configs, by the hash of what determines their scores."""

    def __init__(self, tokenizer: Tokenizer, model: ModelConfig, manner: Manner, origin: str):
        self.tokenizer, self.model, self.manner, self.origin = tokenizer, model, manner, origin
        self.keys: list[tuple[str, ...]] = []
        self.seconds = 0.0
        self.groups: list[list[Request]] = []
        self._asks: dict[str, tuple[Question, LikelihoodConfig]] = {}
        self._cut: set[str] = set()

    def _add(self, question: Question, config: LikelihoodConfig, is_cut: bool) -> str:
        settings = asdict(config)
        del settings["rows_per_call"]
        asked = [list(question.prompt), [list(o) for o in question.options], question.number]
        # A family of recipes holds millions of tokens at once: lists take nine times the room.
        question = replace(question, prompt=array("i", question.prompt))
        key = key_of("score", self.origin, asked, question.divisors, settings, is_cut)
        self._asks[key] = (question, config)
        if is_cut:
            self._cut.add(key)
        return key

    def _lay_out(self) -> None:
        """Questions of equal settings and like length, as many as an engine takes at a time.

        Long ones come first, as memory runs out with them.
        """
        alike: dict[LikelihoodConfig, list[Request]] = {}
        for key, ask in self._asks.items():
            alike.setdefault(ask[1], []).append(Request(key, ask))
        for config, requests in alike.items():
            requests.sort(key=lambda request: -_longest(request.ask[0]))
            group, views = [], 0
            for request in requests:
                needed = len(request.ask[0].options) * config.mc_num
                if group and (len(group) == MOST_QUESTIONS or views + needed > MOST_VIEWS):
                    self.groups.append(group)
                    group, views = [], 0
                group.append(request)
                views += needed
            self.groups.append(group)

    def _fitting(
        self, prompt: list[int], options: Sequence[list[int]], where: str
    ) -> tuple[list[int], bool]:
        """The prompt, cut where it leaves no room; raises `UserError` where that is not asked."""
        if not all(options):
            raise UserError(f"{where}: an option adds no token to the prompt")
        if len(options) > MOST_OPTIONS:
            raise UserError(f"{where}: {len(options)} options, {MOST_OPTIONS} can be scored")
        extra = 1 if self.manner.likelihood.padd_eos else 0
        longest, most = max(map(len, options)) + extra, self.model.max_sequence_length
        if len(prompt) + longest <= most:
            return prompt, False
        if self.manner.too_long != "cut" or longest >= most:
            raise UserError(
                f"{where}: prompt and option have {len(prompt)} + {longest} tokens, more than the"
                f" model's max_sequence_length={most}; too_long=cut drops the front of such"
                " prompts, num_fewshot gives fewer examples"
            )
        return prompt[longest - most :], True

    def answer(self, engine: Engine, requests: Sequence[Request]) -> dict[str, Record]:
        """See `Work.answer`."""
        questions = [request.ask[0] for request in requests]
        found = engine.score(questions, requests[0].ask[1])
        return {
            request.key: {
                "values": as_decided(scores, request.ask[0].divisors),
                **_record(scores),
                "cut": request.key in self._cut,
            }
            for request, scores in zip(requests, found, strict=True)
        }


class Likelihoods(_Asked):
    """The `loglikelihood` instances of a harness."""

    def __init__(
        self,
        instances: Sequence[Any],
        tokenizer: Tokenizer,
        model: ModelConfig,
        manner: Manner,
        origin: str = "",
    ):
        super().__init__(tokenizer, model, manner, origin)
        texts: dict[tuple[Any, ...], dict[str, int]] = {}
        places = []
        for instance in instances:
            context, continuation = instance.args[:2]
            place = (instance.task_name, instance.doc_id, context)
            options = texts.setdefault(place, {})
            places.append((place, options.setdefault(continuation, len(options))))
        counts: dict[tuple[Any, ...], int] = {}
        for task, number, _ in texts:
            counts[task, number] = counts.get((task, number), 0) + 1
        keys = {
            place: self._question(place, list(options), counts[place[:2]] == 1)
            for place, options in texts.items()
        }
        self.keys = [(keys[place],) for place, _ in places]
        self._option = [option for _, option in places]
        self._lay_out()

    def _question(self, place: tuple[Any, ...], options: list[str], is_alone: bool) -> str:
        task, number, context = place
        config = self.manner.likelihood
        tokens = encode_options(
            context,
            options,
            self.tokenizer,
            add_bos=self.manner.add_bos,
            keeps_blanks=self.manner.keeps_blanks,
        )
        where = f"task {task}, question {number}"
        prompt, is_cut = self._fitting(tokens.prompt, tokens.options, where)
        divisors = None
        if config.stop_level:
            # Harnesses also rank by value per character, so that has to be decided as well.
            divisors = tuple(float(max(1, len(text.lstrip()))) for text in options)
            if len(options) == 1 or not is_alone:
                # Nothing races here: the value itself is wanted, or compared elsewhere.
                config = replace(config, stop_level=0.0)
        return self._add(Question(prompt, tokens.options, divisors, number or 0), config, is_cut)

    def result(self, number: int, kept: KeptAnswers) -> tuple[float, bool]:
        """Nats, and whether greedy decoding gives the continuation (False where not asked)."""
        record, option = kept[self.keys[number][0]], self._option[number]
        return record["values"][option], bool(record["greedy"][option])


class Rollings(_Asked):
    """The `loglikelihood_rolling` instances of a harness: whole texts.

    A text is cut into windows of as many tokens as the model takes; each is an answer without a
    prompt, the last, shorter one behind as much of the text as fits. Every token is counted once,
    and the sum over windows is a bound as Eq. 6 is one for each.
    """

    def __init__(
        self,
        instances: Sequence[Any],
        tokenizer: Tokenizer,
        model: ModelConfig,
        manner: Manner,
        origin: str = "",
    ):
        super().__init__(tokenizer, model, manner, origin)
        # A race between options would be over at once.
        config = replace(manner.likelihood, stop_level=0.0)
        for instance in instances:
            where = f"task {instance.task_name}, question {instance.doc_id}"
            keys = []
            for i, (prompt, window) in enumerate(self._windows(instance.args[0], where)):
                number = (instance.doc_id or 0) + i * WINDOW
                keys.append(self._add(Question(prompt, (window,), None, number), config, False))
            self.keys.append(tuple(keys))
        self._lay_out()

    def _windows(self, text: str, where: str) -> list[tuple[list[int], list[int]]]:
        start = beginning(self.tokenizer, self.manner.add_bos)
        tokens = self.tokenizer.encode(text)
        if not tokens:
            raise UserError(f"{where}: the text is empty")
        extra = 1 if self.manner.likelihood.padd_eos else 0
        room = self.model.max_sequence_length - len(start) - extra
        cuts = [(first, tokens[first : first + room]) for first in range(0, len(tokens), room)]
        return [
            ([*start, *tokens[max(0, first + len(window) - room) : first]], window)
            for first, window in cuts
        ]

    def result(self, number: int, kept: KeptAnswers) -> float:
        """Nats of the whole text."""
        return sum(kept[key]["values"][0] for key in self.keys[number])


def _longest(question: Question) -> int:
    return len(question.prompt) + max(map(len, question.options))


def as_decided(found: QuestionScores, divisors: Sequence[float] | None) -> list[float]:
    """Values whose largest one is the option found best, as they are and divided.

    Options that left a race have the mean of fewer masks, by which one may by chance stand above
    the option that beat it; such a value is lowered to just below.
    """
    values = [score.value for score in found.options]
    if found.is_decided is None or divisors is None:
        return values
    ones = (1.0,) * len(values)
    for best, scale in ((found.best, ones), (found.best_divided, divisors)):
        bar = values[best] / scale[best]
        for i, value in enumerate(values):
            if i not in (found.best, found.best_divided) and value / scale[i] >= bar:
                values[i] = (bar - 1e-9 * max(1.0, abs(bar))) * scale[i]
    return values


def _record(found: QuestionScores) -> dict[str, Any]:
    options = found.options
    return {
        "stderr": [score.stderr if score.stderr == score.stderr else None for score in options],
        "greedy": [score.is_greedy for score in options],
        "nfe": sum(score.nfe for score in options),
        "masks": sum(score.n for score in options),
        "seconds": sum(score.seconds for score in options),
    }
