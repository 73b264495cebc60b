"""Evaluates a model on tasks of lm_eval, by published protocols or by one's own settings.

    jaxllada eval LLaDA-8B-Instruct --recipe gsm8k@llada-instruct,math@llada-instruct --output DIR
    jaxllada eval LLaDA-8B-Base --recipe llada-base --output DIR
    jaxllada eval MODEL --tasks gsm8k --preset mine.yaml --num_fewshot 4 --limit 100 --output DIR
    jaxllada eval MODEL --tasks questions.jsonl,my_task.yaml --data data/

`--preset` takes published settings and what `tune` writes. The same command again goes on where it
was cut. Tables go to stdout; results.json, results.md and samples to the output folder.
"""

from pathlib import Path
from typing import Any

from jaxllada.apps import eval as app
from jaxllada.apps.evaluation.ranks import part_of, tell_of_idle
from jaxllada.commands.opening import open_engine
from jaxllada.common.engine import Engine

Config = app.EvalOptions


def run(config: Config) -> int:
    """Answers what is open, scores and prints."""
    return app.run(config, app.Backend("jaxllada", opened, hardware))


def opened(config: Config, folder: Path) -> Engine:
    """Opens the model on the first device that JAX sees; the others stay idle."""
    import jax

    if jax.default_backend() != "cpu":
        how = "one process a device (--part, launch/README.md)"
        tell_of_idle(part_of(config.part), jax.local_device_count(), how)
    return open_engine(config, folder)


def hardware(_: Any) -> str:
    """The device that answered."""
    import jax

    return jax.devices()[0].device_kind
