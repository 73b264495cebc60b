"""`bench rows`: what it saves that rows which are over leave the batch.

Weights are random, so that nothing would end by itself: a stand-in for a stop rule ends row i of B
after block 1 + floor(i * blocks / B), evenly spread and the last row with the last block. Three
runs take turns: without ends, with rows that are over kept in every call, and with those dropped.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxllada.apps.bench_backend import Backend
from jaxllada.apps.bench_cases import random_prompt
from jaxllada.apps.bench_strategies import EXACT, strategy_config
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.errors import UserError
from jaxllada.common.timing import speed_ratio, take_turns

RUNS = ("no ends", "kept", "dropped")
BATCH = 8


def bench_rows(config: Any, backend: Backend) -> dict[str, Any]:
    """Measures the three runs with every strategy; answers that are equal are counted, too."""
    blocks, batch = config.gen_length // config.block_length, config.batch_size or BATCH
    if batch < 2 or blocks < 2:
        raise UserError(
            f"batch_size={batch} with {blocks} blocks: rows that end at different blocks need two"
            " of each"
        )
    config = replace(config, batch_size=batch)
    exact = SamplingConfig(
        gen_length=config.gen_length,
        block_length=config.block_length,
        steps=blocks * config.steps_per_block,
    )
    names = tuple(dict.fromkeys(config.strategies)) or (EXACT,)
    settings = {name: strategy_config(name, exact) for name in names}
    sampler = backend.sampler(config)
    prompt = random_prompt(config, sampler)
    ends = spread_ends(batch, blocks)
    entries = []
    for name, chosen in settings.items():
        calls: dict[str, Callable[[], Any]] = {
            run: lambda run=run, chosen=chosen: sampler.sample_rows(
                prompt,
                chosen,
                None if run == "no ends" else Ends(ends, config.block_length),
                drops_rows=run == "dropped",
            )
            for run in RUNS
        }
        first = take_turns(calls, rounds=1, warmup=0)
        times = take_turns(calls, rounds=config.rounds, warmup=0)
        for run in RUNS:
            found = times[run].result
            entries.append(
                {
                    "strategy": name,
                    "rows": run,
                    "first_seconds": first[run].median,
                    "seconds_median": times[run].median,
                    "nfe": found.nfe,
                    "times_kept": speed_ratio(times[run], times["kept"]),
                    "equal_to_kept": float(
                        (found.trace.tokens == times["kept"].result.trace.tokens).mean()
                    ),
                }
            )
    return {
        "task": "rows",
        "model": config.model_name_or_path,
        "program": backend.program,
        "device": backend.device,
        "dtype": config.dtype,
        "batch_size": batch,
        **{key: getattr(config, key) for key in ("prompt_length", "gen_length", "block_length")},
        "steps_per_block": config.steps_per_block,
        "rounds": config.rounds,
        "blocks_of_rows": ends.tolist(),
        "share_needed": float(ends.sum() / (batch * blocks)),
        "rows": entries,
    }


def spread_ends(batch: int, blocks: int) -> Int[np.ndarray, " B"]:
    """Blocks after which each row ends."""
    return 1 + np.arange(batch) * blocks // batch


class Ends:
    """A stop rule for one run, which is asked after every block for each row still there, in order.

    It counts: `ends` [B] are the blocks after which rows end.
    """

    def __init__(self, ends: Int[np.ndarray, " B"], block_length: int):
        self._ends, self._block_length = ends.tolist(), block_length
        self._block, self._rows = 0, iter(())

    def __call__(self, tokens: Sequence[int]) -> bool:
        block = len(tokens) // self._block_length
        if block != self._block:
            self._rows = iter([end for end in self._ends if end > self._block])
            self._block = block
        return next(self._rows) <= block


def rows_table(report: dict[str, Any]) -> str:
    """The report as lines of text."""
    keys = ("model", "device", "dtype", "batch_size", "prompt_length", "gen_length",
            "block_length", "steps_per_block", "rounds")  # fmt: skip
    lines = [
        ", ".join(f"{key} {report[key]}" for key in keys),
        f"rows end after blocks {' '.join(map(str, report['blocks_of_rows']))}:"
        f" {report['share_needed']:.0%} of all blocks are needed",
        "",
        "| strategy | rows that are over | calls | first, s | seconds | x kept | = kept |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['strategy']} | {row['rows']} | {row['nfe']} | {row['first_seconds']:.2f}"
        f" | {row['seconds_median']:.2f} | {row['times_kept']:.2f}x | {row['equal_to_kept']:.0%} |"
        for row in report["rows"]
    ]
    return "\n".join(lines)
