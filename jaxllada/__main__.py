"""The command line: `jaxllada VERB [CONFIG.yaml] [--key value ...]`.

Only the module of the verb asked for is imported, and that module imports JAX only when it runs.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from jaxllada import __version__
from jaxllada.common.errors import UserError, nearest

VERBS = {
    "tokenizer": ("jaxllada.commands.tokenizer", "train a byte-level BPE tokenizer on a data set"),
    "prepare": ("jaxllada.commands.prepare", "tokenize and pack a data set onto disk"),
    "pretrain": ("jaxllada.commands.pretrain", "train a model on text"),
    "evaluate": ("jaxllada.commands.evaluate", "measure the bound in nats per token, fixed noise"),
    "sample": ("jaxllada.commands.sample", "generate from prompts"),
    "chat": ("jaxllada.commands.chat", "talk to a model in the terminal"),
    "inspect": ("jaxllada.commands.inspect", "count parameters, FLOPs and bytes of a model"),
    "plot": ("jaxllada.commands.plot", "draw the curves of one or more runs"),
    "bench": ("jaxllada.commands.bench", "measure training and sampling speed on this machine"),
}
ALIASES = {"train": "pretrain", "eval": "evaluate"}
# The extra of pyproject.toml that brings a module which the base install does without.
EXTRAS = {"jax": "jax", "flax": "jax", "optax": "jax", "orbax": "jax", "matplotlib": "plot"}


def help_text() -> str:
    """Returns the table of verbs."""
    names = {v: k for k, v in ALIASES.items()}
    rows = [
        f"  {verb:<10} {text}{f' (also: {names[verb]})' if verb in names else ''}"
        for verb, (_, text) in VERBS.items()
    ]
    return "\n".join(
        [
            "usage: jaxllada VERB [CONFIG.yaml] [--key value | key=value ...]",
            "",
            "Masked-diffusion language models of the LLaDA family in JAX.",
            "",
            *rows,
            "",
            "`jaxllada VERB --help` lists every key with its default and meaning.",
            "JAXLLADA_TRACEBACK=1 shows where an error came from.",
        ]
    )


def run(argv: Sequence[str]) -> int:
    """Runs one verb and returns its exit code. Raises UserError for wrong input."""
    if len(argv) > 1 and argv[0] == "help":
        argv = [argv[1], "--help"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if argv[0] in ("-V", "--version", "version"):
        print(f"jaxllada {__version__}")
        return 0
    verb = ALIASES.get(argv[0], argv[0])
    if verb not in VERBS:
        hint = nearest(argv[0], [*VERBS, *ALIASES]) or f"; expected one of {', '.join(VERBS)}"
        raise UserError(f"unknown verb '{argv[0]}'{hint}")
    # The loader comes after the cheap answers: it imports PyYAML.
    from jaxllada.common.config.load import load_config
    from jaxllada.common.memory import keep_freed_memory

    keep_freed_memory()
    module = importlib.import_module(VERBS[verb][0])
    config = load_config(
        module.Config, argv[1:], prog=f"jaxllada {verb}", description=module.__doc__
    )
    return module.run(config) or 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line: 0 done, 2 wrong input, 130 interrupted."""
    try:
        code = run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None or os.environ.get("JAXLLADA_TRACEBACK") == "1":
            raise
        message = f"this needs {error.name}: pip install 'jaxllada[{extra}]'"
        print(f"error: {message}", file=sys.stderr)
        return 2
    except UserError as error:
        if os.environ.get("JAXLLADA_TRACEBACK") == "1":
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`| head`) is gone; the interpreter's own flush at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
