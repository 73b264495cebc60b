"""The verb `export` (`jaxllada/apps/export.py`) for every format, orbax checkpoints included."""

from dataclasses import dataclass

from jaxllada.apps import export as app
from jaxllada.commands import convert

__all__ = ["Config", "run"]
__doc__ = app.__doc__


@dataclass(frozen=True, kw_only=True)
class Config(app.Config):
    average: bool | None = None
    """Training run: its averaged weights, or not; averaged ones where there are any by default."""


def run(config: Config) -> None:
    """Writes the folder."""
    convert.export(config, average=config.average)
