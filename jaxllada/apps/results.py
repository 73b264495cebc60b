"""Shows evaluations as tables beside the published scores, several side by side, or as a picture.

jaxllada results output/
jaxllada results output/a output/b --out compare.png
"""

from dataclasses import dataclass, field
from pathlib import Path

from jaxllada.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Config:
    folders: tuple[str, ...] = field(default=(), metadata={"positional": True})
    """Folders that `eval` wrote, or results.json files."""
    markdown: bool = False
    """Print one folder in full as Markdown: subtasks, settings, environment and sources."""
    out: str = ""
    """Picture to write (.png, .svg, .pdf)."""

    def __post_init__(self) -> None:
        if not self.folders:
            raise UserError("no folder given: expected results FOLDER [FOLDER ...]")
        if self.markdown and len(self.folders) > 1:
            raise UserError(
                f"markdown=true with {len(self.folders)} folders: it prints one folder in full"
            )
        if self.out and Path(self.out).suffix not in (".png", ".svg", ".pdf"):
            raise UserError(f"out={self.out}: expected a name that ends in .png, .svg or .pdf")
        if self.out and not Path(self.out).absolute().parent.is_dir():
            raise UserError(f"out={self.out}: its folder does not exist")


def run(config: Config) -> int:
    """Reads every folder before anything is printed or drawn."""
    from jaxllada.apps.evaluation.beside import beside, read_all
    from jaxllada.apps.evaluation.tables import markdown, terminal

    evaluations = read_all(config.folders)
    if len(evaluations) > 1:
        print(beside(evaluations))
    else:
        print((markdown if config.markdown else terminal)(evaluations[0].runs).rstrip())
    if config.out:
        from jaxllada.apps.evaluation.plot import plot

        plot(evaluations, Path(config.out))
        print(f"wrote {config.out}")
    return 0
