"""`bench growth`: how the time of sampling grows with the length of the answer and with the batch.

A block takes `steps_per_block` model calls at every length, so a canvas twice as long means twice
the calls on twice the tokens: plain sampling may grow by 4 (and a little more, for attention),
caches should stay well below.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxllada.apps.bench_backend import Backend, Sampler
from jaxllada.apps.bench_cases import random_prompt, sampling_call
from jaxllada.apps.bench_strategies import EXACT, strategy_config
from jaxllada.common.config.sampling import SamplingConfig

STRATEGIES = (EXACT, "dual")


def bench_growth(config: Any, backend: Backend) -> dict[str, Any]:
    """Measures every strategy at every length with the first batch size, and reversed."""
    names = tuple(dict.fromkeys(config.strategies)) or STRATEGIES
    largest = replace(config, gen_length=max(config.lengths), batch_size=max(config.batches))
    points = [(length, config.batches[0]) for length in config.lengths]
    points += [(config.lengths[0], batch) for batch in config.batches[1:]]
    plans = [(name, *point) for name in names for point in points]
    for name, length, _ in plans:
        strategy_config(name, _settings(config, length))  # a wrong word is told before the work
    sampler = backend.sampler(largest)
    entries = [_measure(config, sampler, *plan) for plan in plans]
    report = {
        "task": "growth",
        "model": config.model_name_or_path,
        "program": backend.program,
        "device": backend.device,
        "dtype": config.dtype,
        "prompt_length": config.prompt_length,
        "block_length": config.block_length,
        "steps_per_block": config.steps_per_block,
        "rows": entries,
        "exponents": _exponents(entries, names, config),
    }
    if config.output:
        draw(report, config, Path(config.output))
    return report


def _settings(config: Any, length: int) -> SamplingConfig:
    blocks = length // config.block_length
    return SamplingConfig(
        gen_length=length, block_length=config.block_length, steps=blocks * config.steps_per_block
    )


def _measure(config: Any, sampler: Sampler, name: str, length: int, batch: int) -> dict[str, Any]:
    settings = strategy_config(name, _settings(config, length))
    prompt = random_prompt(replace(config, batch_size=batch), sampler)
    call = sampling_call(sampler, prompt, settings)
    # The first call compiles.
    results = [call() for _ in range(config.rounds + 1)][1:]
    median = float(np.median([result["seconds"] for result in results]))
    return {
        "strategy": name,
        "gen_length": length,
        "batch_size": batch,
        "seconds_median": median,
        "nfe": results[-1]["nfe"],
        "tokens_per_second": batch * length / median,
    }


def _exponents(entries: list[dict[str, Any]], names: tuple[str, ...], config: Any) -> dict:
    """Slope of log time over log length, and over log batch, between the ends of each sweep."""

    def slope(name: str, key: str, fixed: str, value: int) -> float | None:
        own = [e for e in entries if e["strategy"] == name and e[fixed] == value]
        first, last = min(own, key=lambda e: e[key]), max(own, key=lambda e: e[key])
        if first[key] == last[key]:
            return None
        ratio = last["seconds_median"] / first["seconds_median"]
        return math.log(ratio) / math.log(last[key] / first[key])

    return {
        name: {
            "length": slope(name, "gen_length", "batch_size", config.batches[0]),
            "batch": slope(name, "batch_size", "gen_length", config.lengths[0]),
        }
        for name in names
    }


def growth_table(report: dict[str, Any]) -> str:
    """The report as lines of text."""
    lines = ["| strategy | new tokens | batch | calls | seconds | tokens/s |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for row in report["rows"]:
        lines.append(
            f"| {row['strategy']} | {row['gen_length']} | {row['batch_size']} | {row['nfe']}"
            f" | {row['seconds_median']:.2f} | {row['tokens_per_second']:.0f} |"
        )
    for name, found in report["exponents"].items():
        parts = [f"{key}^{value:.2f}" for key, value in found.items() if value is not None]
        lines.append(f"{name}: time ~ {', '.join(parts)}")
    return "\n".join(lines)


def draw(report: dict[str, Any], config: Any, out: Path) -> None:
    """Plots both sweeps on logarithmic axes, beside slopes of 1 and 2."""
    import matplotlib
    from matplotlib.figure import Figure

    from jaxllada.common.figures import STYLE, save_figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), dpi=130, layout="constrained")
        left, right = figure.subplots(1, 2)
        rows = report["rows"]
        by_length = [row for row in rows if row["batch_size"] == config.batches[0]]
        by_batch = [row for row in rows if row["gen_length"] == config.lengths[0]]
        _panel(left, by_length, "gen_length", "new tokens", (1, 2))
        _panel(right, by_batch, "batch_size", "rows in the batch", (1,))
        left.set_title(f"{report['steps_per_block']} model calls per block of"
                       f" {report['block_length']}")  # fmt: skip
        right.set_title(f"{config.lengths[0]} new tokens")
        save_figure(figure, out)


def _panel(axes: Any, rows: list, key: str, label: str, slopes: tuple[int, ...]) -> None:
    from matplotlib.ticker import LogLocator

    from jaxllada.common.figures import COLORS

    names = list(dict.fromkeys(row["strategy"] for row in rows))
    for color, name in zip(COLORS, names, strict=False):
        own = sorted((r for r in rows if r["strategy"] == name), key=lambda r: r[key])
        axes.plot(
            [r[key] for r in own], [r["seconds_median"] for r in own], marker="o", color=color,
            label=name,
        )  # fmt: skip
    places = sorted({row[key] for row in rows})
    low = min(row["seconds_median"] for row in rows if row[key] == places[0])
    for slope in slopes:
        axes.plot(
            places, [0.8 * low * (place / places[0]) ** slope for place in places],
            color="#9aa0a8", linewidth=1, linestyle=(0, (4, 4)), zorder=1,
        )  # fmt: skip
        axes.annotate(
            f"slope {slope}", (places[-1], 0.8 * low * (places[-1] / places[0]) ** slope),
            xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, color="#6b7280",
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.margins(x=0.1)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(places, [str(place) for place in places])
    axes.minorticks_off()
    axes.set_xlabel(label)
    axes.set_ylabel("seconds")
    axes.legend()
