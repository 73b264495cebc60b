"""Compares two checkpoints of any format, tensor by tensor.

    jaxllada verify GSAI-ML/LLaDA-8B-Base flax/llada-8b
    jaxllada verify output/run hf/my-model --a_step 2000 --logits --report report.json

Exit code 0: the same bits in every tensor (and, with --logits, in every logit); 1: a difference.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxllada.common.config.compute import Dtype
from jaxllada.common.errors import UserError
from jaxllada.common.sizes import show_bytes

if TYPE_CHECKING:
    from jaxllada.common.config.model import ModelConfig
    from jaxllada.common.weights.compare import Comparison
    from jaxllada.common.weights.source import Source

_ROWS, _LENGTH = 4, 48
# Rows of the printed table; the report has all.
_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Config:
    a: str = field(metadata={"positional": True})
    """Model folder, converted checkpoint, output_dir of a training run, or Hub id."""
    b: str = field(metadata={"positional": True})
    """Another, of the same or another format."""
    a_step: int | None = None
    """Checkpoint of the first, if it is a training run; the newest sound one by default."""
    b_step: int | None = None
    """Checkpoint of the second."""
    a_adapter: str = ""
    """LoRA adapter to add to the first: a PEFT folder, a run that trained one, or an id."""
    b_adapter: str = ""
    """LoRA adapter to add to the second."""
    logits: bool = False
    """Run both on fixed prompts, half of them masks, and compare the logits."""
    dtype: Dtype | None = None
    """Type to run in; the stored type of the first by default."""
    report: str = ""
    """JSON file for everything that was found, hashes of all tensors included."""

    def __post_init__(self) -> None:
        for key in ("a", "b"):
            if not getattr(self, key).strip():
                raise UserError(f"{key}: is empty; expected a folder")
        if self.dtype is not None and not self.logits:
            raise UserError(f"dtype={self.dtype}: only --logits runs anything")
        if self.report and not Path(self.report).absolute().parent.is_dir():
            raise UserError(f"report={self.report}: its folder does not exist")


@dataclass(frozen=True)
class Model:
    """One of the two checkpoints: where it lies, and which one if it is a run."""

    path: Path
    step: int | None
    adapter: str | None = None


OpenSource = Callable[[Model], "Source"]
Logits = Callable[[Model, str, np.ndarray, np.ndarray], np.ndarray]
"""(model, dtype, ids [B, L], attention_mask [B, L]) -> logits [B, L, V] in float32."""


def run(config: Config, open_source: OpenSource, logits: Logits) -> int:
    """Prints what differs; returns 1 if anything does."""
    from jaxllada.common.notices import byte_progress
    from jaxllada.common.weights.compare import compare_weights, config_differences, weight_bytes
    from jaxllada.common.weights.hub import local_folder
    from jaxllada.common.weights.index import write_json

    models = (
        Model(local_folder(config.a), config.a_step, config.a_adapter or None),
        Model(local_folder(config.b), config.b_step, config.b_adapter or None),
    )
    sources: list[Source] = []
    try:
        sources += [open_source(model) for model in models]
        a, b = sources
        total = weight_bytes(a) + weight_bytes(b)
        with byte_progress(total, "verify") as told:
            found = list(compare_weights(a, b, told))
        settings = config_differences(a.config, b.config)
        kinds = [_described(source) for source in sources]
        dtype = config.dtype or a.dtype(a.entries[0]).name
        prompts = fixed_prompts(a.config)
    finally:
        for source in sources:
            source.close()
    report: dict[str, Any] = {
        "a": {"path": config.a, **kinds[0]},
        "b": {"path": config.b, **kinds[1]},
        "config": settings,
        "tensors": [comparison.to_dict() for comparison in found],
    }
    if config.logits:
        one, other = (logits(model, dtype, *prompts) for model in models)
        report["logits"] = {"dtype": dtype, **compare_logits(one, other, prompts[1])}
    differs = [c for c in found if c.status != "equal"]
    is_equal = not differs and not settings
    is_equal &= not config.logits or report["logits"]["equal"]
    report = {"equal": is_equal, **report}
    _print(report, found, total)
    if config.report:
        try:
            write_json(Path(config.report), report)
        except OSError as error:
            raise UserError(f"report={config.report}: {error.strerror}") from None
        print(f"wrote {config.report}")
    return 0 if is_equal else 1


def fixed_prompts(config: "ModelConfig") -> tuple[np.ndarray, np.ndarray]:
    """Returns ids and mask [4, 48], the same for every model of this vocabulary.

    Every second token is hidden; the rows have 48, 43, 31 and 8 tokens, padded on the left.
    """
    rng = np.random.Generator(np.random.Philox(0))
    ids = rng.integers(0, config.vocab_size, (_ROWS, _LENGTH), np.int32)
    is_hidden = rng.random(ids.shape) < 0.5
    if not config.is_causal:
        ids[is_hidden] = config.mask_id
    visible = np.arange(_LENGTH) >= np.array([0, 5, 17, 40])[:, None]
    ids[~visible] = config.pad_token_id
    return ids, visible.astype(np.int32)


def compare_logits(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    """Compares the logits of visible positions, value by value and by their best token."""
    if a.shape != b.shape:
        return {"equal": False, "shapes": [a.shape, b.shape]}
    seen = mask.astype(bool)
    a, b = a[seen].astype(np.float32), b[seen].astype(np.float32)
    gap = np.abs(a - b)
    return {
        "equal": bool(np.array_equal(a, b)),
        "positions": len(a),
        "max_difference": float(gap.max()) if np.isfinite(gap).all() else None,
        "mean_difference": float(gap.mean()) if np.isfinite(gap).all() else None,
        "largest_logit": float(np.abs(a).max()) if np.isfinite(a).all() else None,
        "same_best_token": float((a.argmax(-1) == b.argmax(-1)).mean()),
    }


def _described(source: "Source") -> dict[str, Any]:
    kinds = sorted({source.dtype(entry).name for entry in source.entries})
    return {"format": source.kind, "dtypes": kinds}


def _print(report: dict[str, Any], found: "list[Comparison]", total: int) -> None:
    for key in ("a", "b"):
        side = report[key]
        print(f"{key}: {side['path']} ({side['format']}, {', '.join(side['dtypes'])})")
    for name, (one, other) in report["config"].items():
        print(f"config: {name} is {one} in a and {other} in b")
    differs = [c for c in found if c.status != "equal"]
    if differs:
        rows = [("tensor", "differs in", "a", "b", "values", "max |a - b|")]
        rows += [(c.name, *_row(c)) for c in differs[:_SHOWN]]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            print("   ".join(cells).rstrip())
        if len(differs) > _SHOWN:
            print(f"... and {len(differs) - _SHOWN} more (--report FILE lists all)")
    if "logits" in report:
        print(_logits_line(report["logits"]))
    size = show_bytes(total)
    if report["equal"]:
        print(f"equal: {len(found)} tensors, {size} compared, the same bits")
    else:
        print(f"different: {len(differs)} of {len(found)} tensors, {size} compared")


def _row(c: "Comparison") -> tuple[str, ...]:
    sides = [
        "-" if side is None else f"{'x'.join(map(str, side.shape))} {side.dtype}"
        for side in (c.a, c.b)
    ]
    words = {"missing": "only in a", "unexpected": "only in b"}
    values = "" if c.differing is None else f"{c.differing:,}"
    gap = "NaN" if c.differing is not None else ""
    gap = gap if c.max_difference is None else f"{c.max_difference:.3g}"
    return words.get(c.status, c.status), *sides, values, gap


def _logits_line(found: dict[str, Any]) -> str:
    if "shapes" in found:
        return f"logits: shapes {' and '.join(map(str, found['shapes']))}"
    if found["equal"]:
        return f"logits: equal at {found['positions']} positions, in {found['dtype']}"
    gap = "NaN" if found["max_difference"] is None else f"{found['max_difference']:.3g}"
    return (
        f"logits: max |a - b| {gap} at {found['positions']} positions, in {found['dtype']}; "
        f"the best token is the same at {100 * found['same_best_token']:.1f} %"
    )
