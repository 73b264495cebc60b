"""What the verb `plan` prints: the peak by term, the layouts that fit, the line to launch."""

import dataclasses
import json
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from jaxllada.common.plan.footprint import Footprint
from jaxllada.common.plan.search import Layout
from jaxllada.common.plan.setup import Setup, extra_work
from jaxllada.common.plan.verb import GIB, Plan, as_flags, changed_keys, written_keys

Launch = Callable[[Plan, list[str]], str]
"""Makes the command of a run from the arguments of its verb."""
SHOWN = 8


def arguments_of(plan: Plan) -> list[str]:
    """Arguments of the suggested run: what was configured, then what changes, each key once."""
    changes = changed_keys(plan)
    words = written_keys(plan.config)
    kept: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if word.startswith("--"):
            value = left.pop(0)
            if word[2:] not in changes:
                kept += [word, value]
        else:
            kept.append(word)
    return kept + as_flags(changes)


def text(plan: Plan, launch: Launch, notes: Sequence[str] = ()) -> str:
    """Writes a plan for people."""
    config, setup = plan.config, plan.setup
    total = setup.count.total
    trained = "" if not setup.adapter_rank else f", adapters of rank {setup.adapter_rank}"
    lines = [
        f"{config.model_name_or_path}: {total / 1e9:.3g} B parameters{trained}, "
        f"{config.max_length} tokens a row, {_types(setup)}",
        f"{config.devices} x {config.memory:g} GiB, {config.headroom:g} GiB of it left free",
        "",
    ]
    if plan.footprint is None:
        lines += [f"as configured: {plan.mismatch}"]
    else:
        verdict = "fits" if plan.fits else f"exceeds {config.memory - config.headroom:g} GiB"
        lines += [f"as configured: {describe(setup)}", *_terms(plan.footprint)]
        most = f"largest micro-batch {plan.largest}" if plan.largest else "no micro-batch fits"
        lines += [f"{verdict}; {most}"]
    lines += ["", *_layouts(plan.found)]
    if plan.suggested is not None:
        rows = plan.suggested.rows * plan.suggested.accumulation
        rows *= plan.suggested.data * plan.suggested.fsdp
        lines += [
            "",
            f"suggested: {describe(plan.suggested)}; {rows} row{'s' if rows > 1 else ''} a step",
            f"  {launch(plan, arguments_of(plan))}",
        ]
    else:
        lines += ["no layout fits: more devices, a shorter max_length, or adapters (lora: true)"]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def as_json(plan: Plan, launch: Launch, notes: Sequence[str] = ()) -> str:
    """Writes a plan for programs; sizes in bytes."""
    suggested = plan.suggested
    report: dict[str, Any] = {
        "devices": plan.config.devices,
        "budget": plan.config.budget,
        "parameters": plan.setup.count.total,
        "configured": None if plan.footprint is None else _as_dict(plan.setup, plan.footprint),
        "mismatch": plan.mismatch,
        "fits": plan.fits,
        "largest_rows": plan.largest,
        "layouts": [
            _as_dict(layout.setup, layout.footprint) | {"largest_rows": layout.largest_rows}
            for layout in plan.found
        ],
        "suggested": None if suggested is None else _settings(suggested),
        "launch": None if suggested is None else launch(plan, arguments_of(plan)),
        "notes": list(notes),
    }
    return json.dumps(report, indent=2)


def describe(setup: Setup) -> str:
    """Says a layout in words."""
    mesh = [f"data {setup.data}", f"fsdp {setup.fsdp}"]
    if setup.tensor > 1:
        mesh.append(f"tensor {setup.tensor}")
    pieces = f" x {setup.accumulation} micro-batches" if setup.accumulation > 1 else ""
    rows = f"{setup.rows} row{'s' if setup.rows > 1 else ''} a device{pieces}"
    return f"{' x '.join(mesh)}, remat {setup.remat}, {rows}"


def command(words: Sequence[str]) -> str:
    """Joins the words of a command as a shell reads them."""
    return " ".join(shlex.quote(word) for word in words)


def _types(setup: Setup) -> str:
    stored = f" with {setup.param_dtype} weights" if setup.param_dtype != setup.dtype else ""
    return setup.dtype + stored


def _terms(footprint: Footprint) -> list[str]:
    shown = {name: size for name, size in footprint.terms.items() if size}
    rows = [f"  {name:<14}{size / GIB:8.2f} GiB" for name, size in shown.items()]
    peak = f"  {'peak':<14}{footprint.total / GIB:8.2f} GiB   in the {footprint.phase}"
    return [*rows, peak]


def _layouts(found: Sequence[Layout]) -> list[str]:
    if not found:
        return []
    has_tensor = any(layout.setup.tensor > 1 for layout in found)
    tensor = f"{'tensor':>8}" if has_tensor else ""
    lines = [
        "layouts that fit, best first",
        f"{'data':>6}{'fsdp':>6}{tensor}  {'remat':<10}{'extra work':>10}{'peak':>12}"
        f"{'at rows':>9}{'most rows':>11}",
    ]
    for layout in found[:SHOWN]:
        setup = layout.setup
        tensor = f"{setup.tensor:>8}" if has_tensor else ""
        rows = min(setup.rows, layout.largest_rows)
        lines.append(
            f"{setup.data:>6}{setup.fsdp:>6}{tensor}  {setup.remat:<10}"
            f"{100 * extra_work(setup):>8.0f} %{layout.footprint.total / GIB:>8.1f} GiB"
            f"{rows:>9}{layout.largest_rows:>11}"
        )
    if len(found) > SHOWN:
        lines.append(f"  and {len(found) - SHOWN} more (--json lists them)")
    return lines


def _settings(setup: Setup) -> dict[str, Any]:
    keys = ("data", "fsdp", "tensor", "remat", "rows", "accumulation")
    return {key: value for key, value in dataclasses.asdict(setup).items() if key in keys}


def _as_dict(setup: Setup, footprint: Footprint) -> dict[str, Any]:
    settings = _settings(setup)
    return settings | {"phase": footprint.phase, "terms": footprint.terms, "peak": footprint.total}
