"""Measuring training and sampling with random weights of the true shape, on either backend.

A program named by `beside` takes turns with ours in the same run: it gets one JSON argument (task,
settings and a model folder with the same weights), prints one JSON line when ready, and answers
each line it reads with one JSON line {"seconds": ..., "peak_bytes": ..., "tokens": ...}. With
`strategies` the line it reads names one of those that its first line listed:
{"name": "it", "strategies": ["exact", "dual"]} and {"strategy": "dual"}.
"""

import json
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxllada.common.errors import UserError

if TYPE_CHECKING:
    from jaxllada.apps.bench_backend import Backend


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    task: Literal["train", "sample", "growth", "rows", "likelihood"] = field(
        default="sample", metadata={"positional": True}
    )
    """What to measure: one optimiser step, one whole generation, how its time grows with length
    and batch, what rows that are over save by leaving, or scoring with and without reuse of
    prompts."""
    model_name_or_path: str = ""
    """Preset, config.json or model folder; the first two get random weights. llada-100m by
    default."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations; for sampling also of the weights."""
    batch_size: int = 0
    """Rows; 0: 2 for training, 1 for sampling, 8 for rows. Likelihood: options; 0: 1."""
    length: int = 512
    """Training: tokens of a row."""
    remat: Literal["none", "full", "dots", "attention"] = "none"
    """Training: what the backward pass recomputes."""
    prompt_length: int = 64
    """Sampling: tokens of the prompt."""
    gen_length: int = 128
    """Sampling: tokens of the answer."""
    steps: int = 128
    """Sampling: model calls."""
    block_length: int = 32
    """Sampling: length of a block."""
    strategies: tuple[str, ...] = ()
    """Sampling: ways to compare, separated by spaces: exact, a cache, a selection, a smoothing, or
    several joined by +; all: the published ones. Growth: exact and dual by default; rows: exact."""
    lengths: tuple[int, ...] = (128, 256, 512, 1024)
    """Growth: tokens of the answer. Likelihood: of the prompt."""
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Growth: rows."""
    steps_per_block: int = 8
    """Growth and rows: model calls per block."""
    option_length: int = 12
    """Likelihood: tokens of an option."""
    mc_num: int = 128
    """Likelihood: masks per option."""
    output: str = ""
    """Growth: picture to write (.png, .svg, .pdf)."""
    rounds: int = 5
    """Timed calls of each contestant, after one that is not timed."""
    seed: int = 0
    """Draws weights, prompts and noise."""
    sharpness: float = 8.0
    """Sampling: factor on a random head, so that predictions differ as trained ones do."""
    beside: tuple[str, ...] = ()
    """Commands of other implementations to take turns with, each in quotes; several only with
    strategies."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def __post_init__(self) -> None:
        for key in (
            "length", "prompt_length", "gen_length", "steps", "block_length", "rounds",
            "steps_per_block", "option_length", "mc_num",
        ):  # fmt: skip
            if getattr(self, key) < 1:
                raise UserError(f"{key}={getattr(self, key)}: expected 1 or more")
        if self.batch_size < 0:
            raise UserError(f"batch_size={self.batch_size}: expected 1 or more, or 0 to choose")
        if self.beside and self.task in ("growth", "rows", "likelihood"):
            raise UserError(f"beside={self.beside[0]}: {self.task} measures our code alone")
        if len(self.beside) > 1 and not self.strategies:
            raise UserError(f"beside names {len(self.beside)} programs: that needs strategies")
        if self.strategies and self.task not in ("sample", "growth", "rows"):
            raise UserError(
                f"strategies={self.strategies[0]}: is only for bench sample, growth and rows"
            )
        if self.output and self.task != "growth":
            raise UserError(f"output={self.output}: is only for bench growth")
        if self.output and not Path(self.output).absolute().parent.is_dir():
            raise UserError(f"output={self.output}: its folder does not exist")
        for key in ("lengths", "batches"):
            if not getattr(self, key) or min(getattr(self, key)) < 1:
                raise UserError(f"{key}: expected whole numbers of 1 or more")


def run(config: BenchConfig, backend: "Backend") -> int:
    """Measures with a backend and prints the report."""
    config = replace(config, model_name_or_path=config.model_name_or_path or "llada-100m")
    if config.task == "growth":
        from jaxllada.apps.bench_growth import bench_growth, growth_table

        report, table = bench_growth(config, backend), growth_table
    elif config.task == "rows":
        from jaxllada.apps.bench_rows import bench_rows, rows_table

        report, table = bench_rows(config, backend), rows_table
    elif config.task == "likelihood":
        from jaxllada.apps.bench_likelihood import bench_likelihood, likelihood_table

        report, table = bench_likelihood(config, backend), likelihood_table
    elif config.strategies:
        from jaxllada.apps.bench_strategies import bench_strategies, strategies_table

        report, table = bench_strategies(config, backend), strategies_table
    else:
        report, table = bench_model(config, backend), report_table
    print(json.dumps(report) if config.json else table(report))
    return 0


def bench_model(config: BenchConfig, backend: "Backend") -> dict[str, Any]:
    """Measures one training step or one generation, beside another program if there is one."""
    from jaxllada.apps.bench_cases import sample_case, train_case
    from jaxllada.common.timing import Worker, speed_ratio, take_turns

    case = (train_case if config.task == "train" else sample_case)(config, backend)
    contestants: dict[str, Any] = {"ours": case.call}
    with tempfile.TemporaryDirectory() as folder:
        worker = None
        if config.beside:
            case.save(folder)
            task = asdict(config) | case.task | {"folder": folder}
            worker = contestants["beside"] = Worker(config.beside[0], task)
        backend.forget_peaks()
        # One round that is not timed reaches every contestant's steady state.
        times = take_turns(contestants, rounds=config.rounds)
        if worker is not None:
            worker.close()
    ours, peaks = times["ours"], backend.peaks()
    gemm = backend.gemm_flops(config.dtype)
    calls = ours.result.get("nfe")
    report = {
        "task": config.task,
        "model": config.model_name_or_path,
        "device": backend.device,
        "dtype": config.dtype,
        **case.facts,
        "compile_seconds": round(case.compile_seconds, 2),
        "seconds_median": ours.median,
        "seconds_best": ours.best,
        **({} if calls is None else {"nfe": calls, "seconds_per_call": ours.median / calls}),
        "tokens_per_second": case.tokens / ours.median,
        "model_tflops_per_second": case.flops / ours.median / 1e12,
        "gemm_tflops_per_second": gemm / 1e12,
        "fraction_of_gemm": case.flops / ours.median / gemm,
        **peaks,
    }
    if worker is not None:
        other = times["beside"]
        on_device = other.result.get("peak_device_bytes")
        report |= {
            "beside": config.beside[0],
            "beside_seconds_median": other.median,
            "beside_seconds_best": other.best,
            "times_faster": speed_ratio(ours, other),
            "beside_peak_resident_bytes": other.result.get("peak_bytes"),
            **({"beside_peak_device_bytes": on_device} if on_device else {}),
            **case.compare(ours.result, other.result),
        }
    return report


def report_table(report: dict[str, Any]) -> str:
    """One line per number, in readable units."""
    width = max(len(key) for key in report)
    return "\n".join(f"{key:<{width}}  {_shown(key, value)}" for key, value in report.items())


def _shown(key: str, value: Any) -> str:
    if key.endswith("_bytes") and value is not None:
        return f"{value / 2**30:.2f} GiB"
    if key.startswith("fraction"):
        return f"{value:.1%}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
