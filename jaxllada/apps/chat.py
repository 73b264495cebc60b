"""Conversation in the terminal: several turns, answers appear token by token as they are committed.

Lines are read from any source, so a piped script works like a person at the keyboard.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from jaxllada.common.answers import Decoder, pieces, settled, until_end
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.engine import Engine, Generation, Update
from jaxllada.common.errors import UserError, nearest
from jaxllada.common.manifest import write_atomically
from jaxllada.common.trace import Trace
from jaxllada.common.trace_text import describe

MASK = "░"
COMMANDS = {
    "/help": "show this list",
    "/reset": "forget the conversation",
    "/save": "FILE: write the conversation as JSON messages",
    "/trace": "FILE.npz: write how the last answer came to be, for the verb play",
    "/quit": "leave",
}


class ChatTokenizer(Decoder, Protocol):
    """A tokenizer with a chat template."""

    def chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> list[int]: ...


class Chat:
    """One conversation; `messages` is what the model is shown next."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: ChatTokenizer,
        config: SamplingConfig,
        *,
        seed: int = 0,
        system: str = "",
        model: str = "",
        traces: str = "",
        console: Console | None = None,
    ):
        """`traces` is NAME.npz: the answer of turn i is written to NAME-i.npz; empty: none is."""
        self.engine, self.tokenizer, self.config = engine, tokenizer, config
        self.console = console or Console(highlight=False)
        self.seed, self.model, self.traces = seed, model, traces
        self.trace: Trace | None = None
        self._turns = 0
        self._opening = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._opening)

    def run(self, lines: Iterable[str]) -> None:
        """Answers line by line until /quit or the last one. Wrong input is told, not raised."""
        for line in lines:
            line = line.strip()
            if line == "/quit":
                return
            try:
                if line.startswith("/"):
                    self._command(*line.split(maxsplit=1))
                elif line:
                    self.answer(line)
            except UserError as error:
                self.console.print(f"error: {error}", markup=False, soft_wrap=True)

    def answer(self, text: str) -> str:
        """Adds a turn and its answer; a turn that cannot be answered leaves no trace."""
        asked = [*self.messages, {"role": "user", "content": text}]
        prompt = self.tokenizer.chat(asked)
        # Every turn draws other noise, and the whole conversation repeats under the same seed.
        seed = self.seed + len(self.messages)
        show = self._show_live if self.console.is_terminal else self._print_settled
        generation = show(prompt, seed)
        self._turns += 1
        self.trace = describe(
            generation, self.tokenizer, self.config, prompt=prompt, model=self.model, seed=seed
        )
        if self.traces:
            path = Path(self.traces)
            self.trace.save(path.with_name(f"{path.stem}-{self._turns}{path.suffix}"))
        answer = self._text(until_end(generation.tokens, self.tokenizer))
        self.messages = [*asked, {"role": "assistant", "content": answer}]
        return answer

    def _show_live(self, prompt: list[int], seed: int) -> Generation:
        with Live(console=self.console, auto_refresh=False) as live:
            before: list[int] = []

            def show(update: Update) -> None:
                nonlocal before
                tokens = until_end(update.tokens[0].tolist(), self.tokenizer)
                text = Text()
                for piece in pieces(tokens, self.tokenizer, MASK):
                    is_new = before[piece.positions[0] : piece.positions[-1] + 1] != [
                        tokens[i] for i in piece.positions
                    ]
                    style = "grey50" if piece.is_mask else "bold green" if is_new else None
                    text.append(piece.text, style)
                before = tokens
                progress = Text(f"step {update.step}/{update.total_steps}", "dim")
                live.update(Group(text, progress), refresh=True)

            (generation,) = self.engine.generate([prompt], self.config, seed, show)
            answer = until_end(generation.tokens, self.tokenizer)
            cost = f"{len(answer)} tokens, {generation.nfe} model calls, {generation.seconds:.1f} s"
            live.update(Group(Text(self._text(answer)), Text(cost, "dim")), refresh=True)
        return generation

    def _print_settled(self, prompt: list[int], seed: int) -> Generation:
        written = ""

        def show(tokens: list[int], *, is_final: bool = False) -> None:
            nonlocal written
            text = self._text(settled(tokens, self.tokenizer))
            if not is_final and text.endswith("�"):
                return  # part of a character: wait for the rest
            if text.startswith(written):
                self.console.out(text[len(written) :], end="", highlight=False)
                written = text

        (generation,) = self.engine.generate(
            [prompt], self.config, seed, lambda update: show(update.tokens[0].tolist())
        )
        show(generation.tokens, is_final=True)
        self.console.out("", highlight=False)
        return generation

    def _text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def _command(self, name: str, argument: str = "") -> None:
        if name == "/help":
            for command, meaning in COMMANDS.items():
                self.console.print(f"{command:<8}{meaning}", markup=False)
        elif name == "/reset":
            self.messages = list(self._opening)
            self.console.print("The conversation starts over.")
        elif name == "/save":
            self._save(argument.strip())
        elif name == "/trace":
            self._save_trace(argument.strip())
        else:
            hint = nearest(name, COMMANDS) or "; /help lists them"
            raise UserError(f"{name} is not a command{hint}")

    def _save(self, name: str) -> None:
        path = _file("/save", name)
        content = json.dumps({"messages": self.messages}, ensure_ascii=False, indent=2)
        try:
            write_atomically(path, (content + "\n").encode())
        except OSError as error:
            raise UserError(f"/save {name}: {error.strerror}") from None
        self.console.print(f"Saved {len(self.messages)} messages to {path}.", markup=False)

    def _save_trace(self, name: str) -> None:
        path = _file("/trace", name)
        if self.trace is None:
            raise UserError("/trace: there is no answer yet")
        try:
            self.trace.save(path)
        except OSError as error:
            raise UserError(f"/trace {name}: {error.strerror}") from None
        self.console.print(f"Saved {self.trace.num_steps} steps to {path}.", markup=False)


def _file(command: str, name: str) -> Path:
    if not name:
        raise UserError(f"{command} needs the name of a file")
    path = Path(name).expanduser()
    if not path.parent.is_dir():
        raise UserError(f"{command} {name}: the folder {path.parent} does not exist")
    return path
