"""Generates text from prompts with any engine: the verb `sample` of both packages.

Answers go to stdout, everything else to stderr.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxllada.apps.answering import OpenEngine, Options, check_trace_name, open_model
from jaxllada.common.answers import cut_before, stops_at, until_end
from jaxllada.common.engine import Generation, check_prompts
from jaxllada.common.errors import UserError
from jaxllada.common.trace import Trace
from jaxllada.common.trace_text import describe

if TYPE_CHECKING:
    from jaxllada.common.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class SampleOptions(Options):
    """Keys of sample."""

    prompt: str = ""
    """Text to continue."""
    prompts_file: str = ""
    """File with one prompt per line, instead."""
    chat: bool = False
    """Put every prompt into the model's chat template."""
    num_samples: int = 1
    """Answers per prompt; they differ only with a temperature or random remasking."""
    batch_size: int = 8
    """Answers generated at the same time; the results do not depend on it."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, after the block that completes one; they are cut off."""
    animate: bool = False
    """Play back how the first answer was denoised."""
    trace: str = ""
    """File (.npz) for the record of every step of the first answer; `play` shows it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("num_samples", "batch_size"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}={getattr(self, key)} must be at least 1")
        if not all(self.stop):
            raise UserError(f"stop={list(self.stop)} holds an empty text, which is everywhere")
        if self.prompt and self.prompts_file:
            raise UserError("prompt and prompts_file are two ways to give prompts: use one")
        if self.num_samples > 1 and not self.sampling(room=128).needs_key:
            raise UserError(
                f"num_samples={self.num_samples} with temperature=0 gives equal answers:"
                " set temperature, for example 0.7"
            )
        check_trace_name(self.trace)


def run(config: SampleOptions, open_engine: OpenEngine) -> int:
    """Prints every answer; the text of special tokens is left out."""
    given = read_prompts(config.prompts_file) if config.prompts_file else [config.prompt]
    texts = [text for text in given for _ in range(config.num_samples)]
    engine, tokenizer = open_model(config, open_engine)
    prompts = [encode(text, tokenizer, config.chat) for text in texts]
    room = engine.config.max_sequence_length - max(map(len, prompts))
    sampling = config.sampling(room, tokenizer)
    check_prompts(prompts, sampling, engine.config)
    answers = _Answers(config, tokenizer, is_numbered=len(texts) > 1)
    should_stop = stops_at(config.stop, tokenizer) if config.stop else None
    for first in range(0, len(texts), config.batch_size):
        batch = slice(first, first + config.batch_size)
        generations = engine.generate(
            prompts[batch], sampling, config.seed, first_row=first, should_stop=should_stop
        )
        if first == 0 and (config.trace or config.animate):
            trace = describe(
                generations[0],
                tokenizer,
                sampling,
                prompt=prompts[0],
                model=config.model_name_or_path,
                seed=config.seed,
            )
            _show(config, trace)
        for i, generation in enumerate(generations, first):
            answers.write(texts[i], prompts[i], generation)
    print(answers.summary(), file=sys.stderr)
    return 0


class _Answers:
    """Writes answers to stdout and counts what they took."""

    def __init__(self, config: SampleOptions, tokenizer: "Tokenizer", *, is_numbered: bool):
        self.config, self.tokenizer, self.is_numbered = config, tokenizer, is_numbered
        self.count = self.tokens = self.calls = 0
        self.seconds = 0.0

    def write(self, text: str, prompt: list[int], generation: Generation) -> None:
        kept = until_end(generation.tokens, self.tokenizer)
        if self.config.infill and self.tokenizer.mask_id in prompt:
            # The answer begins at the first gap and holds what was given behind it.
            text = self.tokenizer.decode(prompt[: prompt.index(self.tokenizer.mask_id)])
            kept = generation.tokens[: generation.end]
        answer = self.tokenizer.decode(kept, skip_special_tokens=True)
        answer = cut_before(answer, self.config.stop)
        if self.is_numbered:
            print(f"--- {self.count + 1}")
        print(answer if self.config.chat else text + answer, flush=True)
        if self.count % self.config.batch_size == 0:  # calls and time are those of the batch
            self.calls += generation.nfe
            self.seconds += generation.seconds
        self.count += 1
        self.tokens += len(kept)

    def summary(self) -> str:
        rate = self.tokens / max(self.seconds, 1e-9)
        return (
            f"{self.tokens} tokens before the end tokens, {self.calls} model calls,"
            f" {self.seconds:.1f} s from the first call ({rate:.1f} tokens/s)"
        )


def _show(config: SampleOptions, trace: Trace) -> None:
    if config.trace:
        trace.save(config.trace)
    if config.animate:
        from jaxllada.apps.denoise import play

        play(trace)


def read_prompts(name: str) -> list[str]:
    """Reads one prompt per line; raises `UserError` for a file without any."""
    try:
        text = Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"prompts_file={name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"prompts_file={name} is not UTF-8 text") from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"prompts_file={name} is empty")
    return lines


def encode(text: str, tokenizer: "Tokenizer", use_chat: bool) -> list[int]:
    """Tokens of a prompt, in the chat template if asked for."""
    if use_chat:
        return tokenizer.chat([{"role": "user", "content": text}])
    # An empty prompt is the start of a document, which follows the end of another.
    return tokenizer.encode(text) or [tokenizer.eos_id]
