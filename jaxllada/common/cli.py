"""A command line of verbs, shared by the packages: `PROGRAM VERB [CONFIG.yaml] [--key value ...]`.

Only the module of the verb asked for is imported, and that module imports its framework only when
it runs, so that help and errors are instant.
"""

import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxllada.common.errors import UserError, nearest

Verbs = Mapping[str, tuple[str, str]]
"""Name of a verb: (module with `Config` and `run(config)`, what it does)."""


@dataclass(frozen=True)
class Program:
    """What a package's command line consists of."""

    command: str
    """What the user types before a verb."""
    about: str
    """One sentence for the help."""
    version: str
    verbs: Verbs
    aliases: Mapping[str, str] = field(default_factory=dict)
    extras: Mapping[str, str] = field(default_factory=dict)
    """The extra of pyproject.toml that brings a module which the base install does without."""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Verbs of the other package: what to type instead."""

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Runs the command line: 0 done, 2 wrong input, 130 interrupted."""
        try:
            code = self.run(sys.argv[1:] if argv is None else argv)
            sys.stdout.flush()
            return code
        except ModuleNotFoundError as error:
            extra = self.extras.get((error.name or "").split(".")[0])
            if extra is None or _wants_traceback():
                raise
            message = f"this needs {error.name}: pip install 'jaxllada[{extra}]'"
            print(f"error: {message}", file=sys.stderr)
            return 2
        except UserError as error:
            if _wants_traceback():
                raise
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            # The reader (`| head`) is gone; the interpreter's flush at exit must not complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141

    def run(self, argv: Sequence[str]) -> int:
        """Runs one verb and returns its exit code. Raises UserError for wrong input."""
        if len(argv) > 1 and argv[0] == "help":
            argv = [argv[1], "--help"]
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(self.help_text())
            return 0
        if argv[0] in ("-V", "--version", "version"):
            print(f"{self.command.split()[-1]} {self.version}")
            return 0
        verb = self._verb(argv[0])
        # The loader comes after the cheap answers: it imports PyYAML.
        from jaxllada.common.config.load import load_config
        from jaxllada.common.memory import keep_freed_memory

        keep_freed_memory()
        module = importlib.import_module(self.verbs[verb][0])
        config = load_config(
            module.Config,
            argv[1:],
            prog=f"{self.command} {verb}",
            description=self._described(module.__doc__ or ""),
        )
        return module.run(config) or 0

    def help_text(self) -> str:
        """Returns the table of verbs."""
        names = {verb: alias for alias, verb in self.aliases.items()}
        rows = [
            f"  {verb:<10} {text}{f' (also: {names[verb]})' if verb in names else ''}"
            for verb, (_, text) in self.verbs.items()
        ]
        return "\n".join(
            [
                f"usage: {self.command} VERB [CONFIG.yaml] [--key value | key=value ...]",
                "",
                self.about,
                "",
                *rows,
                "",
                f"`{self.command} VERB --help` lists every key with its default and meaning.",
                "JAXLLADA_TRACEBACK=1 shows where an error came from.",
            ]
        )

    def _verb(self, name: str) -> str:
        verb = self.aliases.get(name, name)
        if verb in self.verbs:
            return verb
        if verb in self.elsewhere:
            raise UserError(f"'{name}' is no verb of {self.command}: use {self.elsewhere[verb]}")
        hint = nearest(name, [*self.verbs, *self.aliases])
        raise UserError(
            f"unknown verb '{name}'{hint or '; expected one of ' + ', '.join(self.verbs)}"
        )

    def _described(self, text: str) -> str:
        """The text of a verb that both packages share, its examples in the words of this one."""
        known = "|".join([*self.verbs, *self.aliases])
        return re.sub(rf"^ *jaxllada (?=(?:{known})\b)", f"    {self.command} ", text, flags=re.M)


def _wants_traceback() -> bool:
    return os.environ.get("JAXLLADA_TRACEBACK") == "1"
