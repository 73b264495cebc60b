"""Requests for text: prompts with the same settings in batches of similar length.

An answer ends at its first end token and before the first of a task's stop texts. Those are looked
for in the text with its special tokens, which are removed afterwards, as the released evaluation
does (ML-GSAI/LLaDA, eval_llada.py).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxllada.apps.evaluation.answers_kept import KeptAnswers, Record, key_of
from jaxllada.apps.evaluation.asked import Manner, Request
from jaxllada.apps.sampling_keys import completed
from jaxllada.common.answers import stops_at, until_end
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.engine import Engine
from jaxllada.common.errors import UserError
from jaxllada.common.tokenizer import Tokenizer

REPEATS = 1 << 20
"""Rows of a task between the first answers to its questions and the second ones."""
USUAL = 256
"""Tokens of an answer where neither the user nor the task says more, as lm_eval has it."""
KNOWN = ("until", "do_sample", "temperature", "max_gen_toks", "top_p", "top_k")
OTHER_LENGTHS = ("max_length", "max_tokens", "max_new_tokens", "max_completion_tokens")
"""Other names under which tasks give `max_gen_toks`."""


class TextAsk(NamedTuple):
    """One prompt and how it is answered."""

    prompt: list[int]
    config: SamplingConfig
    until: tuple[str, ...]
    row: int
    """What the noise of the answer is drawn by."""
    is_cut: bool


def settings_of(
    task: Mapping[str, Any], given: Mapping[str, Any], model: ModelConfig, tokenizer: Tokenizer
) -> tuple[SamplingConfig, tuple[str, ...]]:
    """The sampler's options and the stop texts for a task's `generation_kwargs`.

    What is `given` wins: of the task, the stop texts always count, and its length, temperature,
    top_p and top_k where nothing is given for them. Its length is rounded up to whole blocks.
    """
    lengths = [task[name] for name in ("max_gen_toks", *OTHER_LENGTHS) if task.get(name)]
    fits = 2 ** ((model.max_sequence_length // 2).bit_length() - 1)
    length = int(lengths[0]) if lengths else min(USUAL, fits)
    block = given.get("block_length") or 1
    values: dict[str, Any] = {"gen_length": -(-length // block) * block}
    if task.get("do_sample") and task.get("temperature"):
        values["temperature"] = float(task["temperature"])
        values |= {name: task[name] for name in ("top_p", "top_k") if task.get(name)}
    until = task.get("until") or ()
    until = (until,) if isinstance(until, str) else tuple(until)
    config = completed(values | dict(given), model.max_sequence_length, tokenizer)
    if config.infill:
        raise UserError("infill=true: the prompts of tasks have no gaps; leave it out")
    return config, tuple(text for text in until if text)


def told_settings(task: Mapping[str, Any], given: Mapping[str, Any], config: SamplingConfig) -> str:
    """One line: which settings are used, and which of the task's are not."""
    names = ("gen_length", "steps", "block_length", "temperature")
    shown = ", ".join(f"{name}={getattr(config, name)}" for name in names)
    lengths = {"max_gen_toks": "gen_length"} | dict.fromkeys(OTHER_LENGTHS, "gen_length")
    unused = []
    for name, value in task.items():
        if name in ("until", "do_sample") or value is None:
            continue
        ours = lengths.get(name, name)
        is_known = name in KNOWN or name in lengths
        if not is_known or (value != getattr(config, ours) and (ours in given or value)):
            unused.append(f"{name}={value}")
    ending = f"; not used of the task: {', '.join(unused)}" if unused else ""
    return f"{shown}{ending}"


class Texts:
    """The `generate_until` instances of a harness."""

    def __init__(
        self,
        instances: Sequence[Any],
        tokenizer: Tokenizer,
        model: ModelConfig,
        manner: Manner,
        origin: str = "",
    ):
        self.tokenizer, self.model, self.manner = tokenizer, model, manner
        self.keys: list[tuple[str, ...]] = []
        self.seconds = 0.0
        self.settings: dict[str, tuple[SamplingConfig, tuple[str, ...]]] = {}
        """The sampler's options and the stop texts of each task."""
        self._known: dict[str, tuple[SamplingConfig, tuple[str, ...]]] = {}
        asks: dict[str, TextAsk] = {}
        repeats: dict[int, int] = {}
        for instance in instances:
            again = repeats[id(instance)] = repeats.get(id(instance), -1) + 1
            row = again * REPEATS + (instance.doc_id or 0)
            ask = self._ask(instance, row)
            drawn = [manner.seed, row] if ask.config.needs_key else []
            settings = dataclasses.asdict(ask.config)
            key = key_of("text", origin, ask.prompt, settings, ask.until, ask.is_cut, drawn)
            asks.setdefault(key, ask)
            self.keys.append((key,))
        self.groups = self._lay_out(asks)

    def _settings(self, task: Mapping[str, Any]) -> tuple[SamplingConfig, tuple[str, ...]]:
        name = repr(task)
        if name not in self._known:
            found = settings_of(task, self.manner.sampling, self.model, self.tokenizer)
            self._known[name] = found
        return self._known[name]

    def _ask(self, instance: Any, row: int) -> TextAsk:
        context, task = instance.args[0], instance.args[1]
        config, until = self._settings(task)
        self.settings.setdefault(instance.task_name, (config, until))
        # An empty prompt is the start of a document, which follows the end of another.
        prompt = self.tokenizer.encode(context) or [self.tokenizer.eos_id]
        room = self.model.max_sequence_length - config.gen_length
        if len(prompt) <= room:
            return TextAsk(prompt, config, until, row, False)
        if self.manner.too_long == "cut" and room > 0:
            return TextAsk(prompt[-room:], config, until, row, True)
        blocks = (self.model.max_sequence_length - len(prompt)) // config.block_length
        if self.manner.too_long == "shorten" and blocks > 0:
            return TextAsk(prompt, _shortened(config, blocks), until, row, False)
        raise UserError(
            f"task {instance.task_name}, question {instance.doc_id}: the prompt has {len(prompt)}"
            f" tokens, with gen_length={config.gen_length} more than the model's"
            f" max_sequence_length={self.model.max_sequence_length}; too_long=cut drops the front"
            " of such prompts, too_long=shorten gives answers fewer blocks, num_fewshot fewer"
            " examples"
        )

    def _lay_out(self, asks: Mapping[str, TextAsk]) -> list[list[Request]]:
        """Batches of equal settings; long prompts first, as memory runs out with them."""
        alike: dict[tuple[Any, ...], list[Request]] = {}
        for key, ask in asks.items():
            alike.setdefault((ask.config, ask.until), []).append(Request(key, ask))
        groups, size = [], self.manner.batch_size
        for requests in alike.values():
            requests.sort(key=lambda request: -len(request.ask.prompt))
            groups += [requests[i : i + size] for i in range(0, len(requests), size)]
        return groups

    def answer(self, engine: Engine, requests: Sequence[Request]) -> dict[str, Record]:
        """See `Work.answer`."""
        asks: list[TextAsk] = [request.ask for request in requests]
        config, until = asks[0].config, asks[0].until
        # With one block, an answer is over when all of it is.
        has_blocks = config.num_blocks > 1 or not config.is_fixed
        generations = engine.generate(
            [ask.prompt for ask in asks],
            config,
            self.manner.seed,
            first_row=[ask.row for ask in asks] if config.needs_key else 0,
            should_stop=stops_at(until, self.tokenizer) if until and has_blocks else None,
        )
        records = {}
        for request, ask, generation in zip(requests, asks, generations, strict=True):
            text, tokens = judged(generation.tokens, until, self.tokenizer)
            records[request.key] = {
                "text": text,
                "tokens": tokens,
                "nfe": generation.nfe,
                "rows": len(asks),
                "seconds": generation.seconds / len(asks),
                "cut": ask.is_cut,
            }
        return records

    def result(self, number: int, kept: KeptAnswers) -> str:
        """The answer as text."""
        return kept[self.keys[number][0]]["text"]


def judged(tokens: Sequence[int], until: Sequence[str], tokenizer: Tokenizer) -> tuple[str, int]:
    """The text of an answer that a task judges, and how many tokens it has."""
    ended = until_end(tokens, tokenizer)
    text = whole = tokenizer.decode(ended)
    for stop in until:  # one after the other, as a stop text may reach over the place of another
        text = text.partition(stop)[0]
    if text == whole:
        return tokenizer.decode(ended, skip_special_tokens=True), len(ended)
    kept = tokenizer.encode(text)
    return tokenizer.decode(kept, skip_special_tokens=True), len(kept)


def _shortened(config: SamplingConfig, blocks: int) -> SamplingConfig:
    """The same settings for fewer blocks, with as many steps in each."""
    steps = config.steps_per_block * (blocks if config.shares_steps else 1)
    return dataclasses.replace(config, gen_length=blocks * config.block_length, steps=steps)
