"""A comparison of runs as a table and a picture: nats per byte over steps and over repetitions."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxllada.common.config.load import load_file
from jaxllada.common.config.opening import read_config
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.counting import count_parameters
from jaxllada.common.manifest import write_atomically
from jaxllada.common.tracking import read_metrics

Comparison = dict[str, Any]
"""`runs`: what `_run` says of each; `baselines`: nats per byte by name; `unit`."""


def run_name(side: str, times: int) -> str:
    """Name of a run folder inside that of the comparison."""
    return f"{side}-{times}x"


def compared(output: Path, plans: Sequence[tuple[str, int]]) -> Comparison:
    """Reads the runs below `output` that have been evaluated after some training.

    `plans` lists (side, repetitions) of all runs.
    """
    runs, baselines = [], {}
    for side, times in plans:
        folder = output / run_name(side, times)
        if not (folder / "metrics.jsonl").is_file():
            continue
        lines = read_metrics(folder / "metrics.jsonl")
        measured = [line for line in lines if line.get("eval_bound_per_byte") is not None]
        if not measured or measured[-1]["step"] == 0:
            continue
        runs.append(_run(side, times, folder, lines, measured))
        per_token = measured[-1]["eval_bound_per_byte"] / measured[-1]["eval_bound"]
        for key in ("uniform_bound", "unigram_bound"):
            found = [line[key] for line in lines if key in line]
            baselines |= {key: found[-1] * per_token} if found else {}
    return {"unit": "nats per byte", "runs": runs, "baselines": baselines}


def _run(
    side: str, times: int, folder: Path, lines: list[dict[str, Any]], measured: list[dict[str, Any]]
) -> dict[str, Any]:
    last = measured[-1]
    best = min(measured, key=lambda line: line["eval_bound_per_byte"])
    trained = [line for line in lines if "loss" in line]
    scale = last["eval_bound_per_byte"] / last["eval_bound"]
    tokens = trained[-1]["tokens"]
    # Of an unfinished run too: the steps it is planned for decide its rows.
    planned = load_file(TrainConfig, folder / "config.yaml").max_steps
    return {
        "side": side,
        "repeats": times,
        "steps": last["step"],
        "parameters": count_parameters(read_config(folder)).total,
        "tokens": round(tokens),
        "distinct_tokens": round(tokens * planned / trained[-1]["step"] / times),
        "train": trained[-1]["loss"] * scale,
        "final": last["eval_bound_per_byte"],
        "final_error": last["eval_standard_error"] * scale,
        "final_per_token": last["eval_bound"],
        "best": best["eval_bound_per_byte"],
        "best_step": best["step"],
        "steps_measured": [line["step"] for line in measured],
        "curve": [line["eval_bound_per_byte"] for line in measured],
    }


def table(found: Comparison) -> str:
    """The comparison in Markdown, one line a run."""
    head = (
        *("model", "data seen", "distinct tokens", "steps", "train", "validation, nats/byte"),
        *("nats/token", "best, nats/byte", "at step"),
    )
    rows = [
        (
            run["side"],
            f"{run['repeats']}x",
            f"{run['distinct_tokens']:,}",
            f"{run['steps']:,}",
            f"{run['train']:.3f}",
            f"{run['final']:.4f} +- {run['final_error']:.4f}",
            f"{run['final_per_token']:.3f}",
            f"{run['best']:.4f}",
            f"{run['best_step']:,}",
        )
        for run in found["runs"]
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [_line(head, widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
    lines += [_line(row, widths) for row in rows]
    names = {"uniform_bound": "guessing evenly", "unigram_bound": "token frequencies"}
    limits = ", ".join(f"{names[key]} {value:.3f}" for key, value in found["baselines"].items())
    text = (
        "Diffusion: upper bound under fixed noise; autoregressive: exact. `train` is the loss of "
        "the last logged steps, on data of which each row was seen as often as the column says."
    )
    sizes = {run["side"]: f"{run['parameters']:,}" for run in found["runs"]}
    told = ", ".join(f"{side} {count}" for side, count in sizes.items())
    return "\n".join(lines) + f"\n\n{text} Baselines: {limits}. Parameters: {told}."


def write(output: Path, found: Comparison) -> None:
    """Writes compare.json, compare.md and, where matplotlib is installed, compare.png."""
    if not found["runs"]:
        return
    write_atomically(output / "compare.json", (json.dumps(found, indent=1) + "\n").encode())
    write_atomically(output / "compare.md", f"{table(found)}\n".encode())
    try:
        draw(found, output / "compare.png")
    except ModuleNotFoundError:
        return


def draw(found: Comparison, path: Path) -> None:
    """Draws validation over steps, and its end and best value by repetitions."""
    import matplotlib
    from matplotlib.figure import Figure

    from jaxllada.common.figures import STYLE, save_figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.6), dpi=130, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
        _draw_curves(left, found)
        _draw_repeats(right, found)
        save_figure(figure, path)


_COLORS = {"diffusion": "#2f6db3", "autoregressive": "#d1603d"}


def _draw_curves(axes: Any, found: Comparison) -> None:
    times = sorted({run["repeats"] for run in found["runs"]})
    styles = dict(zip(times, ("-", (0, (5, 2)), (0, (1, 1.5)), "-."), strict=False))
    for run in found["runs"]:
        axes.plot(
            run["steps_measured"], run["curve"], color=_COLORS[run["side"]],
            linestyle=styles.get(run["repeats"], "-"), linewidth=1.8, marker="o", markersize=3,
            label=f"{run['side']} {run['repeats']}x",
        )  # fmt: skip
    values = [value for run in found["runs"] for value in run["curve"][1:]]
    low, high = min(values), max([*values, found["baselines"].get("unigram_bound", -math.inf)])
    axes.set_ylim(low - 0.06 * (high - low), high + 0.1 * (high - low))
    for name, value in found["baselines"].items():
        if value > axes.get_ylim()[1]:
            continue
        axes.axhline(value, color="#9aa0a8", linewidth=1, linestyle=(0, (5, 4)), zorder=1)
        axes.annotate(
            name.removesuffix("_bound"), (0.995, value), xycoords=("axes fraction", "data"),
            xytext=(0, 3), textcoords="offset points", ha="right", color="#6b7280", fontsize=8.5,
        )  # fmt: skip
    axes.set_title("Validation during training", pad=10)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("nats per byte of text (diffusion: upper bound)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=len(times), fontsize=8.5)


def _draw_repeats(axes: Any, found: Comparison) -> None:
    for side, color in _COLORS.items():
        runs = [run for run in found["runs"] if run["side"] == side]
        if not runs:
            continue
        x = [run["repeats"] for run in runs]
        axes.errorbar(
            x, [run["final"] for run in runs], yerr=[run["final_error"] for run in runs],
            color=color, marker="o", linewidth=1.8, capsize=2, label=f"{side}, at the end",
        )  # fmt: skip
        axes.plot(
            x, [run["best"] for run in runs], color=color, marker="o", markerfacecolor="white",
            linewidth=1, linestyle=(0, (2, 2)),
        )  # fmt: skip
    axes.plot(
        [], [], color="#9aa0a8", marker="o", markerfacecolor="white", linewidth=1,
        linestyle=(0, (2, 2)), label="best on the way",
    )  # fmt: skip
    times = sorted({run["repeats"] for run in found["runs"]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(times, [f"{number}x" for number in times])
    axes.minorticks_off()
    axes.set_title("By repetitions of the data", pad=10)
    axes.set_xlabel("times each row is seen, at equal steps")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, fontsize=8.5)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"
