"""Talks to a model in the terminal with any engine: the verb `chat` of both packages."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from jaxllada.apps.answering import OpenEngine, Options, check_trace_name, open_model


@dataclass(frozen=True, kw_only=True)
class ChatOptions(Options):
    """Keys of chat."""

    system: str = ""
    """System message the conversation starts with."""
    trace: str = ""
    """NAME.npz: the record of every step of the answer in turn i goes to NAME-i.npz."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_trace_name(self.trace)


def run(config: ChatOptions, open_engine: OpenEngine) -> int:
    """Reads turns from the terminal, or line by line from a pipe, until /quit or the end."""
    engine, tokenizer = open_model(config, open_engine)
    from jaxllada.apps.chat import Chat

    sampling = config.sampling(engine.config.max_sequence_length // 2, tokenizer)
    chat = Chat(engine, tokenizer, sampling, seed=config.seed, system=config.system,
                model=config.model_name_or_path, traces=config.trace)  # fmt: skip
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
