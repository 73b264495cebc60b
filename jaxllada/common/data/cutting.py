"""One global batch of rows -> the padded, corrupted arrays of this process.

Shape letters: A micro-batches, B rows of this process in one micro-batch, L positions.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int8, Int32

from jaxllada.common import noise
from jaxllada.common.data.classes import token_classes
from jaxllada.common.data.next_token import shifted
from jaxllada.common.data.padding import PadPolicy, trained_padding
from jaxllada.common.data.rows import Row
from jaxllada.common.errors import UserError


class Batch(NamedTuple):
    """What one optimiser step sees on this process.

    `maskable` marks the positions the loss counts; `visible` is False where attention must not
    look and None where no row of the global batch needs an attention mask. `classes` says what
    kind of answer token each position holds (see `classes.py`); None for running text.
    """

    tokens: Int32[np.ndarray, "A B L"]
    noisy: Int32[np.ndarray, "A B L"]
    is_masked: Bool[np.ndarray, "A B L"]
    mask_rate: Float32[np.ndarray, "A B"]
    maskable: Bool[np.ndarray, "A B L"]
    visible: Bool[np.ndarray, "A B L"] | None
    classes: Int8[np.ndarray, "A B L"] | None = None

    def digest(self) -> str:
        """Hash of every value and shape: equal digests mean equal batches."""
        digest = hashlib.blake2b(digest_size=16)
        for array in self:
            if array is None:
                digest.update(b"none")
            else:
                digest.update(f"{array.dtype}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


@dataclasses.dataclass(eq=False, kw_only=True)
class Cutter:
    """How a global batch becomes arrays.

    Row r of a global batch is row b of process s in micro-batch a, with
    r = (a * shard_count + s) * micro_batch + b: joining the processes along B gives the batch of
    one process with shard_count times the rows. Example r of step n has the global index
    n * global_batch + r, from which all noise is drawn.

    Rows of different lengths are padded with `pad_id` to the longest of the global batch (the
    mini-batch of LLaDA, arXiv:2502.09992v3, section 2.3); `pad_policy` says how much of that is
    trained on and visible (see `padding.py`). The width of the arrays is rounded up to
    `pad_to_multiple`, so that few shapes are compiled; what lies behind the longest row is neither
    counted nor visible.

    `mask_id` is None for autoregressive models; their rows begin behind `start_id`.
    """

    seed: int
    micro_batch: int
    mask_id: int | None
    pad_id: int
    max_length: int
    start_id: int = 0
    accumulation: int = 1
    shard_index: int = 0
    shard_count: int = 1
    eps: float = 1e-3
    time_sampling: noise.TimeSampling = "iid"
    random_length_ratio: float = 0.0
    random_length_mode: noise.LengthMode = "sequence"
    pad_policy: PadPolicy | None = None
    pad_to_multiple: int = 64

    def __post_init__(self) -> None:
        for key in ("micro_batch", "accumulation", "max_length", "shard_count", "pad_to_multiple"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}={getattr(self, key)}: must be at least 1")
        if not 0 <= self.shard_index < self.shard_count:
            raise UserError(f"shard_index={self.shard_index}: must be below {self.shard_count}")
        if self.pad_id == self.mask_id:
            raise UserError(f"pad_id={self.pad_id}: must differ from the mask id")
        trained_padding(self.pad_policy or "ignore")
        # Draw once now, so that a bad setting is reported before the first step.
        noise.mask_rate(self.seed, 0, sampling=self.time_sampling, eps=self.eps)
        ratio, mode = self.random_length_ratio, self.random_length_mode
        noise.random_length(self.seed, 0, 1, ratio=ratio, mode=mode)

    @property
    def global_batch(self) -> int:
        """Examples of one optimiser step over all processes."""
        return self.micro_batch * self.accumulation * self.shard_count

    def policy_for(self, default: PadPolicy) -> PadPolicy:
        """Returns the pad policy for rows that are padded with `default` by themselves.

        Raises UserError for settings that are about the other kind of rows.
        """
        if default == "ignore":
            return self.pad_policy or default
        if self.random_length_ratio:
            raise UserError(
                f"random_length_ratio={self.random_length_ratio}: is for running text; set it to "
                "0 for prompt/answer rows"
            )
        return self.pad_policy or default

    def own_rows(self) -> np.ndarray:
        """Numbers of this process's rows in the global batch, in the order of [A, B]."""
        rows = np.arange(self.global_batch)
        cut = rows.reshape(self.accumulation, self.shard_count, self.micro_batch)
        return cut[:, self.shard_index].ravel()

    def cut(
        self,
        step: int,
        row_of: Callable[[int], Row],
        length_of: Callable[[int], int],
        *,
        row_length: int | None,
        pad_policy: PadPolicy,
        has_answers: bool = False,
    ) -> Batch:
        """Reads, pads and corrupts this process's rows of step `step`.

        `row_of` and `length_of` take the number of a row in the global batch; only lengths are
        asked of rows that other processes hold. `row_length` set: every row is padded to it.
        `has_answers`: the batch tells classes of tokens.
        """
        first = step * self.global_batch
        used = [length_of(r) for r in range(self.global_batch)]
        if max(used) > self.max_length:
            raise UserError(f"max_length={self.max_length}: a row has {max(used)} tokens")
        rounded = -(-max(used) // self.pad_to_multiple) * self.pad_to_multiple
        width = row_length or min(rounded, self.max_length)
        padding = trained_padding(pad_policy)
        if padding == 0:
            ends = [self._visible_length(first + r, n, width) for r, n in enumerate(used)]
        else:
            longest = row_length or max(used)
            ends = [longest if padding is None else min(n + padding, longest) for n in used]
        own = self.own_rows()
        shape = (len(own), width)
        tokens = np.full(shape, self.pad_id, np.int32)
        maskable = np.ones(shape, bool)
        noisy, is_masked = np.empty_like(tokens), np.empty_like(maskable)
        rates = np.empty(len(own), np.float32)
        for i, r in enumerate(map(int, own)):
            row, index = row_of(r), first + r
            n = len(row.tokens)
            tokens[i, :n], maskable[i, :n] = row.tokens, row.maskable
            maskable[i, ends[r] :] = False
            noisy[i], is_masked[i], rates[i], _ = self._corrupt(tokens[i], maskable[i], index)
        check_free_of_mask(tokens, self.mask_id)
        # Whether a mask is needed is decided by the global batch, so that all processes agree.
        whole = min(ends) == width
        visible = None if whole else np.arange(width) < np.array([ends[r] for r in own])[:, None]

        def stacked(array: np.ndarray) -> np.ndarray:
            return array.reshape(self.accumulation, self.micro_batch, *array.shape[1:])

        return Batch(
            stacked(tokens),
            stacked(noisy),
            stacked(is_masked),
            stacked(rates),
            stacked(maskable),
            None if visible is None else stacked(visible),
            stacked(np.stack([token_classes(row, self.pad_id) for row in tokens]))
            if has_answers
            else None,
        )

    def _corrupt(self, tokens: np.ndarray, maskable: np.ndarray, index: int) -> noise.Corruption:
        if self.mask_id is None:
            return shifted(tokens, maskable, self.start_id)
        return noise.corrupt(
            tokens,
            maskable,
            seed=self.seed,
            index=index,
            mask_id=self.mask_id,
            sampling=self.time_sampling,
            batch_size=self.global_batch,
            eps=self.eps,
        )

    def _visible_length(self, index: int, used: int, width: int) -> int:
        """Cuts a row to a random length; rows of one batch share the length in `batch` mode."""
        length = noise.random_length(
            self.seed,
            index,
            used if self.random_length_mode == "sequence" else width,
            ratio=self.random_length_ratio,
            mode=self.random_length_mode,
            batch_size=self.global_batch,
        )
        return min(length, used)


def visited(row: Row, seed: int, index: int) -> Row:
    """Draws one turn of a dialogue for example `index` (LLaDA, arXiv:2502.09992v3, B.1)."""
    return row.turn(noise.choose(seed, index, len(row.turns))) if row.turns else row


def check_free_of_mask(tokens: np.ndarray, mask_id: int | None) -> None:
    """Raises a UserError where clean tokens hold the mask id: nothing could be learned there."""
    if mask_id is not None and (tokens == mask_id).any():
        raise UserError(
            f"the data holds the mask id {mask_id}: remove the mask token from the text, or "
            "prepare the data with this model's tokenizer"
        )
