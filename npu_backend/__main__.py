"""The command line: `python -m npu_backend VERB [CONFIG.yaml] [--key value ...]`."""

import sys

from jaxllada.common.cli import Program
from jaxllada.common.version import __version__

VERBS = {
    "tokenizer": ("jaxllada.apps.tokenizer", "train a byte-level BPE tokenizer on a data set"),
    "prepare": ("jaxllada.apps.prepare", "tokenize and pack a data set onto disk"),
    "pretrain": ("npu_backend.commands.pretrain", "train a model on text"),
    "sft": ("npu_backend.commands.sft", "fine-tune a model on prompts and answers"),
    "compare": ("npu_backend.commands.compare", "train diffusion and its autoregressive twin"),
    "evaluate": ("npu_backend.commands.evaluate", "measure the bound in nats per token"),
    "score": ("npu_backend.commands.score", "score questions with options by their likelihood"),
    "eval": ("npu_backend.commands.eval", "evaluate on tasks, by published protocols"),
    "sample": ("npu_backend.commands.sample", "generate from prompts"),
    "chat": ("npu_backend.commands.chat", "talk to a model in the terminal"),
    "tune": ("npu_backend.commands.tune", "find fast sampling settings and write a preset"),
    "presets": ("jaxllada.apps.presets", "list the published sampling settings"),
    "recipes": ("jaxllada.apps.recipes", "list the published evaluation protocols"),
    "results": ("jaxllada.apps.results", "show evaluations beside the published scores"),
    "play": ("jaxllada.apps.play", "play a trace back, or make a page or pictures of it"),
    "inspect": ("jaxllada.apps.inspect", "count parameters, FLOPs and bytes of a model"),
    "export": ("npu_backend.commands.export", "write a complete Hugging Face model folder"),
    "merge": ("npu_backend.commands.merge", "add an adapter to its base and compare the logits"),
    "verify": ("npu_backend.commands.verify", "compare two checkpoints tensor by tensor"),
    "plot": ("jaxllada.apps.plot", "draw the curves of one or more runs"),
    "plan": ("npu_backend.commands.plan", "predict the memory of a run and how to cut it"),
    "bench": ("npu_backend.commands.bench", "measure training and sampling"),
    "doctor": ("npu_backend.commands.doctor", "check driver, CANN, torch_npu and HCCL"),
}
ALIASES = {"train": "pretrain"}
EXTRAS = {"torch": "torch", "torch_npu": "npu", "matplotlib": "plot", "PIL": "plot"}

PROGRAM = Program(
    command="python -m npu_backend",
    about="Masked-diffusion language models of the LLaDA family in PyTorch, for Ascend NPUs.",
    version=__version__,
    verbs=VERBS,
    aliases=ALIASES,
    extras=EXTRAS,
    elsewhere={"convert": "jaxllada convert"},
)
main = PROGRAM.main

if __name__ == "__main__":
    sys.exit(main())
