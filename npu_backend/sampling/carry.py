"""What a reader keeps, carried over to a canvas with other rows or another length.

Shape letters: R rows on the new canvas.
"""

import dataclasses
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from npu_backend.models.kept import Kept


def carried(memory: Any, rows: Int[np.ndarray, " R"], length: int) -> Any:
    """Takes rows out of a memory, and cuts or extends its keys and values to `length` positions.

    New positions hold zeros: they are computed before anything sees them. Features of an answer
    belong to canvases of one length and keep theirs.
    """

    def take(x: Any) -> Any:
        if isinstance(x, Tensor):
            return x.index_select(0, torch.as_tensor(rows, device=x.device))
        if isinstance(x, Kept):
            return Kept(*(_resized(take(part), length) for part in x))
        if dataclasses.is_dataclass(x):
            parts = {f.name: take(getattr(x, f.name)) for f in dataclasses.fields(x)}
            return dataclasses.replace(cast(Any, x), **parts)
        return x if isinstance(x, int) else [take(part) for part in x]

    return take(memory) if memory else memory


def _resized(x: Tensor, length: int) -> Tensor:
    x = x[:, :length]
    missing = length - x.shape[1]
    return F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x.contiguous()
