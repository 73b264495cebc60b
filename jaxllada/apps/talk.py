"""Talks to a model in the terminal with any engine: the verb `chat` of both packages."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from jaxllada.apps.answering import OpenEngine, Options, open_model


@dataclass(frozen=True, kw_only=True)
class ChatOptions(Options):
    """Keys of chat."""

    system: str = ""
    """System message the conversation starts with."""


def run(config: ChatOptions, open_engine: OpenEngine) -> int:
    """Reads turns from the terminal, or line by line from a pipe, until /quit or the end."""
    engine, tokenizer = open_model(config, open_engine)
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
