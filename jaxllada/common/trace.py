"""What happened during sampling: which token was committed when, and how sure the model was.

A committed token never changes, so its step and confidence are enough to rebuild every frame.
Shape letters: B rows, P prompt length, N answer length, S steps.
"""

import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxllada.common.errors import UserError
from jaxllada.common.manifest import write_atomically

NOT_COMMITTED = -1
"""Order of a position that is still masked."""
GIVEN = -2
"""Order of a position of the answer that was given with the prompt."""


@dataclass(frozen=True)
class Trace:
    """Record of one sampling run over B rows; `trace[i]` is the record of one row."""

    prompt: Int[np.ndarray, "B P"]
    """int32 tokens before the answer, left padding included."""
    tokens: Int[np.ndarray, "B N"]
    """int32 answer; `mask_token_id` where nothing has been committed."""
    order: Int[np.ndarray, "B N"]
    """int16 step, from 0, after which the token was there; -1 where nothing was committed, -2
    where the token was given."""
    confidence: Float[np.ndarray, "B N"]
    """float32 value the step ranked the token by; 0 for the end tokens that fill a stopped row."""
    mask_token_id: int
    about: Mapping[str, Any] = field(default_factory=dict)
    """What the arrays do not say, ready for JSON: text, settings, model (`common/trace_text.py`).
    Empty for a trace that comes straight from a sampler."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, row: int) -> "Trace":
        one = slice(row, row + 1) if row >= 0 else slice(row, row + 1 or None)
        return Trace(
            self.prompt[one],
            self.tokens[one],
            self.order[one],
            self.confidence[one],
            self.mask_token_id,
            self._about_row(row),
        )

    def _about_row(self, row: int) -> Mapping[str, Any]:
        rows = self.about.get("rows")
        return self.about if rows is None else {**self.about, "rows": [rows[row]]}

    @property
    def num_steps(self) -> int:
        """Steps that were run."""
        return int(self.order.max(initial=NOT_COMMITTED)) + 1

    def frame(self, step: int) -> Int[np.ndarray, "B N"]:
        """The answer after `step` steps; step 0 is all masks (int32)."""
        return np.where(self.is_there(step), self.tokens, self.mask_token_id).astype(np.int32)

    def is_there(self, step: int) -> Bool[np.ndarray, "B N"]:
        """What is committed after `step` steps."""
        return (self.order != NOT_COMMITTED) & (self.order < step)

    def frames(self) -> Iterator[Int[np.ndarray, "B N"]]:
        """The answer before the first step and after every step."""
        return (self.frame(step) for step in range(self.num_steps + 1))

    def save(self, path: str | os.PathLike) -> None:
        """Writes an .npz file under its final name only when it is complete."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            prompt=self.prompt.astype(np.int32),
            tokens=self.tokens.astype(np.int32),
            order=self.order.astype(np.int16),
            confidence=self.confidence.astype(np.float32),
            mask_token_id=np.int32(self.mask_token_id),
            about=np.frombuffer(_to_json(self.about), np.uint8),
        )
        write_atomically(Path(path), buffer.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Trace":
        """Reads what `save` wrote, older files without `about` too; else raises `UserError`."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in ("prompt", "tokens", "order", "confidence")}
                about = json.loads(file["about"].tobytes()) if "about" in file else {}
                return cls(**arrays, mask_token_id=int(file["mask_token_id"]), about=about)
        except FileNotFoundError:
            raise UserError(f"trace {path} does not exist") from None
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is not a sampling trace: {error}") from None


def _to_json(about: Mapping[str, Any]) -> bytes:
    return json.dumps(about, ensure_ascii=False, separators=(",", ":")).encode()
