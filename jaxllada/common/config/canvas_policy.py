"""How the canvas of an answer is laid out and how it grows: the rules of the option `canvas`."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FixedCanvas:
    """`gen_length` masks stand behind the prompt from the start."""


CanvasPolicy = FixedCanvas

CANVASES: Mapping[str, type[CanvasPolicy]] = {"fixed": FixedCanvas}
"""Each rule by the name it has in a specification (`common.config.spec`)."""
