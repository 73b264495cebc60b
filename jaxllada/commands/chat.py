"""Talks to a model in the terminal; /help lists the commands.

jaxllada chat --model_name_or_path LLaDA-8B-Instruct --gen_length 128 --steps 64
jaxllada chat --model_name_or_path output/my-sft < questions.txt
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from jaxllada.commands.answering import Options, open_model


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    system: str = ""
    """System message the conversation starts with."""


def run(config: Config) -> int:
    """Reads turns from the terminal, or line by line from a pipe, until /quit or the end."""
    engine, tokenizer = open_model(config)
    from jaxllada.apps.chat import Chat

    sampling = config.sampling(engine.config.max_sequence_length // 2, tokenizer.eot_id)
    chat = Chat(engine, tokenizer, sampling, seed=config.seed, system=config.system)
    chat.run(_typed_lines() if sys.stdin.isatty() else sys.stdin)
    return 0


def _typed_lines() -> Iterator[str]:
    print("/help lists the commands, Ctrl-D leaves")
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
