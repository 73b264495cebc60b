"""`bench likelihood`: what keys and values of the prompt save when its answers are scored.

One question with random tokens for each length of the prompt, scored whole (`reuse=none`) and
beside its prompt (`prompt`, `corrected`), in turns. Its error is told with it: weights are random,
so that this error says nothing of a trained model's.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from jaxllada.apps.bench_backend import Backend
from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.scores import Question
from jaxllada.common.timing import speed_ratio, take_turns

REUSES = ("none", "prompt", "corrected")


def bench_likelihood(config: Any, backend: Backend) -> dict[str, Any]:
    """Measures every kind of reuse at every prompt length."""
    settings = {
        reuse: LikelihoodConfig(mc_num=config.mc_num, seed=config.seed, reuse=reuse)
        for reuse in REUSES
    }
    longest = replace(
        config, prompt_length=max(config.lengths), gen_length=config.option_length, batch_size=1
    )
    scorer = backend.sampler(longest)
    highest = min(scorer.config.vocab_size, scorer.config.mask_id)
    draw = np.random.default_rng(config.seed).integers
    rows = []
    for length in config.lengths:
        options = draw(0, highest, (config.batch_size or 1, config.option_length)).tolist()
        question = Question(draw(0, highest, length).tolist(), tuple(options))
        calls = {
            reuse: lambda chosen=chosen, question=question: scorer.score([question], chosen)[0]
            for reuse, chosen in settings.items()
        }
        times = take_turns(calls, rounds=config.rounds)
        for reuse in REUSES:
            scores = times[reuse].result.options
            rows.append(
                {
                    "prompt_length": length,
                    "reuse": reuse,
                    "seconds_median": times[reuse].median,
                    "nfe": sum(score.nfe for score in scores),
                    "times_none": speed_ratio(times[reuse], times["none"]),
                    "value": scores[0].value,
                    "stderr": scores[0].stderr,
                    "reuse_error": scores[0].reuse_error,
                }
            )
    return {
        "task": "likelihood",
        "model": config.model_name_or_path,
        "program": backend.program,
        "device": backend.device,
        "dtype": config.dtype,
        "options": config.batch_size or 1,
        **{key: getattr(config, key) for key in ("option_length", "mc_num", "rounds")},
        "rows": rows,
    }


def likelihood_table(report: dict[str, Any]) -> str:
    """The report as lines of text."""
    keys = ("model", "device", "dtype", "options", "option_length", "mc_num", "rounds")
    lines = [
        ", ".join(f"{key} {report[key]}" for key in keys),
        "",
        "| prompt | reuse | canvases | seconds | x none | nats | error of reuse |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in report["rows"]:
        error = row["reuse_error"]
        told = "" if row["reuse"] == "none" else "read whole" if error is None else f"{error:+.4f}"
        lines.append(
            f"| {row['prompt_length']} | {row['reuse']} | {row['nfe']}"
            f" | {row['seconds_median']:.2f} | {row['times_none']:.2f}x"
            f" | {row['value']:.3f} +- {row['stderr']:.3f} | {told} |"
        )
    return "\n".join(lines)
