"""Draws the curves of one run, or of several over each other.

jaxllada plot output/run
jaxllada plot output/a output/b --out compare.png
"""

from dataclasses import dataclass, field
from pathlib import Path

from jaxllada.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Config:
    runs: tuple[str, ...] = field(default=(), metadata={"positional": True})
    """Run folders, or metrics.jsonl files."""
    out: str = ""
    """Picture to write, .png, .svg or .pdf; empty: loss.png in the run folder, or compare.png here
    for several runs."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UserError("no run given: expected plot RUN_DIR [RUN_DIR ...]")
        if Path(self.out).suffix not in ("", ".png", ".svg", ".pdf"):
            raise UserError(f"out={self.out}: expected a name that ends in .png, .svg or .pdf")


def run(config: Config) -> None:
    """Reads every run before anything is drawn, writes the picture and prints where it is."""
    from jaxllada.common.curves import read_curves
    from jaxllada.common.plots import plot_runs

    curves = [read_curves(name, label) for name, label in _labels(config.runs)]
    plot_runs(curves, out := _out(config))
    print(f"wrote {out}")


def _out(config: Config) -> Path:
    if config.out:
        return Path(config.out) if Path(config.out).suffix else Path(f"{config.out}.png")
    if config.runs[1:]:
        return Path("compare.png")
    return _folder(config.runs[0]) / "loss.png"


def _folder(run: str) -> Path:
    path = Path(run)
    return path if path.is_dir() else path.parent


def _labels(runs: tuple[str, ...]) -> list[tuple[str, str]]:
    """Names runs by their folder, by the whole path where folders share a name."""
    folders = [_folder(run) for run in runs]
    names = [folder.resolve().name for folder in folders]
    return [
        (path, name if names.count(name) == 1 else str(folder))
        for path, name, folder in zip(runs, names, folders, strict=True)
    ]
