"""Evaluates a model on tasks of lm_eval, by published protocols or by one's own settings.

    jaxllada eval LLaDA-8B-Instruct --recipe gsm8k@llada-instruct,math@llada-instruct --output DIR
    jaxllada eval LLaDA-8B-Base --recipe llada-base --output DIR
    jaxllada eval MODEL --tasks gsm8k --preset mine.yaml --num_fewshot 4 --limit 100 --output DIR
    jaxllada eval MODEL --tasks questions.jsonl,my_task.yaml --data data/
    jaxllada eval --recipe list
    jaxllada eval --show DIR OTHER_DIR

`--preset` takes published settings and what `tune` writes. The same command again goes on where it
was cut. Tables go to stdout; results.json, results.md and samples to the output folder.
"""

from typing import Any

from jaxllada.apps import eval as app
from jaxllada.commands.opening import open_engine

Config = app.EvalOptions


def run(config: Config) -> int:
    """Answers what is open, scores and prints."""
    return app.run(config, app.Backend("jaxllada", open_engine, hardware))


def hardware(_: Any) -> str:
    """The devices that JAX sees."""
    import jax

    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
