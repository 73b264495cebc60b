"""The command line: `jaxllada VERB [CONFIG.yaml] [--key value ...]`."""

import sys

from jaxllada import __version__
from jaxllada.common.cli import Program

VERBS = {
    "tokenizer": ("jaxllada.apps.tokenizer", "train a byte-level BPE tokenizer on a data set"),
    "prepare": ("jaxllada.apps.prepare", "tokenize and pack a data set onto disk"),
    "pretrain": ("jaxllada.commands.pretrain", "train a model on text"),
    "sft": ("jaxllada.commands.sft", "fine-tune a model on prompts and answers"),
    "compare": ("jaxllada.commands.compare", "train diffusion and its autoregressive twin"),
    "evaluate": ("jaxllada.commands.evaluate", "measure the bound in nats per token, fixed noise"),
    "score": ("jaxllada.commands.score", "score questions with options by their likelihood"),
    "eval": ("jaxllada.commands.eval", "evaluate on tasks, by published protocols"),
    "sample": ("jaxllada.commands.sample", "generate from prompts"),
    "chat": ("jaxllada.commands.chat", "talk to a model in the terminal"),
    "tune": ("jaxllada.commands.tune", "find fast sampling settings and write a preset"),
    "presets": ("jaxllada.apps.presets", "list the published sampling settings"),
    "recipes": ("jaxllada.apps.recipes", "list the published evaluation protocols"),
    "results": ("jaxllada.apps.results", "show evaluations beside the published scores"),
    "play": ("jaxllada.apps.play", "play a trace back, or make a page or pictures of it"),
    "inspect": ("jaxllada.commands.inspect", "count parameters, FLOPs and bytes of a model"),
    "plan": ("jaxllada.commands.plan", "predict the memory of a run and how to cut it"),
    "plot": ("jaxllada.apps.plot", "draw the curves of one or more runs"),
    "convert": ("jaxllada.commands.convert", "convert weights between Hugging Face and Flax"),
    "export": ("jaxllada.commands.export", "write a complete Hugging Face model folder"),
    "merge": ("jaxllada.commands.merge", "add an adapter to its base and compare the logits"),
    "verify": ("jaxllada.commands.verify", "compare two checkpoints tensor by tensor"),
    "bench": ("jaxllada.commands.bench", "measure training, sampling and converting"),
}
ALIASES = {"train": "pretrain"}
EXTRAS = {
    "jax": "jax",
    "flax": "jax",
    "optax": "jax",
    "orbax": "jax",
    "tensorstore": "jax",
    "matplotlib": "plot",
    "PIL": "plot",
}

PROGRAM = Program(
    command="jaxllada",
    about="Masked-diffusion language models of the LLaDA family in JAX.",
    version=__version__,
    verbs=VERBS,
    aliases=ALIASES,
    extras=EXTRAS,
    elsewhere={"doctor": "python -m npu_backend doctor"},
)
main = PROGRAM.main

if __name__ == "__main__":
    sys.exit(main())
