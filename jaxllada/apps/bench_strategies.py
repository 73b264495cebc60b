"""`bench sample --strategies`: ways to sample side by side, and beside other programs.

A strategy is `exact`, or a cache, a selection, a smoothing or several joined by `+`, in the words
of those keys: `dual`, `threshold:0.9`, `dual+threshold:0.9`, `dual+soft`. The settings are those of
the reference: what differs from `exact` is what the strategy names.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from jaxllada.apps.bench_backend import Backend
from jaxllada.apps.bench_cases import exact_settings, random_prompt, sampling_call
from jaxllada.common.config.cache import CACHES
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.config.smoothing import SMOOTHINGS
from jaxllada.common.errors import UserError
from jaxllada.common.timing import Times, Worker, speed_ratio, take_turns

EXACT = "exact"
PUBLISHED = (
    EXACT, "threshold:0.9", "credit:0.9", "hierarchy:0.92", "factor:1.0",
    "prefix", "dual", "vicinity", "dllm",
    "prefix+threshold:0.9", "dual+threshold:0.9", "threshold:0.9,decay=0.02+soft",
)  # fmt: skip
"""What `--strategies all` stands for."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    strategy: str
    program: str
    times: Times
    nfe: int | None
    answer: np.ndarray | None
    """Tokens [B, N], if the program tells them."""
    peak: int | None
    """Bytes: ours of the first call, compiling included; of other programs what they tell."""

    def equal_to(self, other: "Row") -> float | None:
        """Share of equal tokens."""
        if self.answer is None or other.answer is None:
            return None
        return float((self.answer == other.answer).mean())


def strategy_config(strategy: str, exact: SamplingConfig) -> SamplingConfig:
    """The settings of a strategy; raises `UserError` for a word that names none."""
    changes: dict[str, str] = {}
    for word in [] if strategy == EXACT else strategy.split("+"):
        name = word.partition(":")[0]
        key = "smoothing" if name in SMOOTHINGS else "selection"
        key = "cache" if name in CACHES else key  # both know the word none
        if key in changes:
            raise UserError(f"strategies={strategy} names two values of {key}")
        changes[key] = word
    try:
        return replace(exact, **changes)
    except UserError as error:
        raise UserError(f"strategies={strategy}: {error}") from None


def chosen(strategies: Sequence[str], exact: SamplingConfig) -> dict[str, SamplingConfig]:
    """The settings of every strategy asked for, those of the exact decode first."""
    names = PUBLISHED if tuple(strategies) == ("all",) else tuple(strategies)
    return {name: strategy_config(name, exact) for name in dict.fromkeys((EXACT, *names))}


def bench_strategies(config: Any, backend: Backend) -> dict[str, Any]:
    """Measures every strategy; the report's `rows` have one entry per strategy and program."""
    settings = chosen(config.strategies, exact_settings(config))
    sampler = backend.sampler(config)
    prompt = random_prompt(config, sampler)
    contestants: dict[str, Callable[[], Any]] = {}
    peaks: dict[str, int] = {}
    for name, ways in settings.items():
        call = contestants[f"{backend.program}\t{name}"] = sampling_call(sampler, prompt, ways)
        backend.forget_peaks()
        call()  # compiles
        found = backend.peaks()
        peaks[name] = found.get("peak_device_bytes", found["peak_resident_bytes"])
    with tempfile.TemporaryDirectory() as folder:
        if config.beside:
            sampler.save(folder)
        task = asdict(config) | {"prompt": prompt.tolist(), "batch_size": len(prompt)}
        workers = [Worker(command, task | {"folder": folder}) for command in config.beside]
        for number, worker in enumerate(workers, 1):
            program = str(worker.hello.get("name", f"beside {number}"))
            if any(key.startswith(f"{program}\t") for key in contestants):
                program = f"{program} ({number})"
            for name in worker.hello.get("strategies", [EXACT]):
                if name in settings:
                    contestants[f"{program}\t{name}"] = _theirs(worker, name)
        times = take_turns(contestants, rounds=config.rounds, warmup=0)
        for worker in workers:
            worker.close()
    rows = [_row(key, times[key], config.prompt_length) for key in times]
    rows = [replace(r, peak=peaks[r.strategy]) if r.program == backend.program else r for r in rows]
    return {
        "task": "sample",
        "model": config.model_name_or_path,
        "program": backend.program,
        "device": backend.device,
        "dtype": config.dtype,
        "batch_size": len(prompt),
        **{key: getattr(config, key) for key in ("prompt_length", "gen_length", "steps")},
        "block_length": config.block_length,
        "rounds": config.rounds,
        "rows": _entries(rows, backend.program, len(prompt) * config.gen_length),
    }


def _theirs(worker: Worker, strategy: str) -> Callable[[], Any]:
    return lambda: worker(strategy=strategy)


def _row(key: str, times: Times, prompt_length: int) -> Row:
    program, strategy = key.split("\t")
    result: Mapping[str, Any] = times.result
    answer = np.array(result["tokens"])[:, prompt_length:] if "tokens" in result else None
    peak = result.get("peak_device_bytes", result.get("peak_bytes"))
    return Row(strategy, program, times, result.get("nfe"), answer, peak)


def _entries(rows: Sequence[Row], program: str, tokens: int) -> list[dict[str, Any]]:
    """Adds how many times faster and how equal: to our exact decode, and ours to others'.

    Of another program both its exact decode and the same strategy are told. `tokens` are those of
    all answers.
    """
    exact = next(row for row in rows if row.program == program and row.strategy == EXACT)
    entries = []
    for row in rows:
        entry = {
            "strategy": row.strategy,
            "program": row.program,
            "seconds_median": row.times.median,
            "seconds_best": row.times.best,
            "tokens_per_second": tokens / row.times.median,
            "nfe": row.nfe,
            "seconds_per_call": row.times.median / row.nfe if row.nfe else None,
            "peak_bytes": row.peak,
            "times_exact": speed_ratio(row.times, exact.times),
            "equal_to_exact": row.equal_to(exact),
        }
        for other in rows if row.program == program else ():
            if other.program != program and other.strategy == EXACT:
                entry[f"times_{other.program}"] = speed_ratio(row.times, other.times)
            if other.program != program and other.strategy == row.strategy:
                entry[f"times_same_{other.program}"] = speed_ratio(row.times, other.times)
                entry[f"equal_to_same_{other.program}"] = row.equal_to(other)
        entries.append(entry)
    return entries


def strategies_table(report: Mapping[str, Any]) -> str:
    """The report as a Markdown table below one line of settings."""
    rows = report["rows"]
    extra = list(dict.fromkeys(k for r in rows for k in r if k.startswith(("times_", "equal_"))))
    heads = ["strategy", "program", "seconds", "tokens/s", "calls", "peak", *map(_head, extra)]
    lines = [heads, ["---"] * 2 + ["---:"] * (len(heads) - 2)]
    for row in rows:
        cells = [
            row["strategy"],
            row["program"],
            f"{row['seconds_median']:.2f}",
            f"{row['tokens_per_second']:.0f}",
            "" if row["nfe"] is None else str(row["nfe"]),
            "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.2f} GiB",
        ]
        lines.append(cells + [_cell(key, row.get(key)) for key in extra])
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    text = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    about = ", ".join(
        f"{key} {report[key]}"
        for key in ("model", "device", "dtype", "batch_size", "prompt_length", "gen_length",
                    "steps", "block_length", "rounds")
    )  # fmt: skip
    return "\n".join([about, "", *text])


def _head(key: str) -> str:
    kind, _, what = key.partition("_")
    what = what.removeprefix("to_")
    same = "same of " if what.startswith("same_") else ""
    name = {"exact": "ours exact"}.get(what, same + what.removeprefix("same_"))
    return f"x {name}" if kind == "times" else f"= {name}"


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}x" if key.startswith("times") else f"{value:.0%}"
