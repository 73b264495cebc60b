"""The answers of a run on the host: laid out on canvases for a device, and taken back.

Answers begin at the same column and differ in length; what lies behind a row's end is not seen.
Under `infill` they begin before the end of the prompt, at a block that holds the first mask; under
`start_block_align` in the middle of a block.

Shape letters: B rows of the run, R rows on the device, P prompt length, N answer length, L canvas
length.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from jaxllada.common.alignment import aligned, led
from jaxllada.common.canvas import Canvas, Snapshot, positions_of
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.lengths import first_length
from jaxllada.common.policy import Policy
from jaxllada.common.prompts import checked_prompt
from jaxllada.common.sizing import Sizes
from jaxllada.common.trace import GIVEN, NOT_COMMITTED, Trace
from jaxllada.common.unmasking import unmasking_plan


class Answers:
    """The answers of a run as far as they are known, on the host: `merge` writes into them."""

    def __init__(
        self,
        prompt: Int[np.ndarray, "B P"],
        visible: Bool[np.ndarray, "B P"],
        config: SamplingConfig,
        model: ModelConfig,
        sizes: Sizes,
    ):
        self.config, self.model, self.sizes = config, model, sizes
        self.lead = self.spare = 0
        self.tails = np.zeros(len(prompt), np.int64)
        """Tokens of each prompt that share the first block, where blocks are aligned."""
        self.shown_prompt: Int[np.ndarray, "B P"] | None = None
        """The prompt as it was given, where blocks are aligned."""
        if config.infill:
            found = led(prompt, visible, config.block_length, model.mask_id, model.eos_token_id)
            prompt, visible, self.lead, self.spare = found
        size = self.lead * config.block_length
        if config.start_block_align:
            self.shown_prompt, size = prompt, config.block_length
            ids = (model.mask_id, model.eos_token_id)
            prompt, visible, self.tails = aligned(prompt, visible, size, *ids)
        self.begin = prompt.shape[1] - size
        self.prompt, self.visible = prompt[:, : self.begin].copy(), visible
        self.known = prompt != model.mask_id
        answer = np.full((len(prompt), config.gen_length), model.mask_id, np.int32)
        # Masks that nobody sees are padding too.
        given = np.where(visible, prompt, model.eos_token_id) if self.has_given else prompt
        self.tokens = np.concatenate([given[:, self.begin :], answer], axis=1)
        if config.start_block_align:
            behind = np.arange(self.tokens.shape[1]) >= self.tails[:, None] + config.gen_length
            self.tokens[behind] = model.eos_token_id
        is_given = self.tokens != model.mask_id
        self.order = np.where(is_given, GIVEN, NOT_COMMITTED).astype(np.int32)
        self.confidence = np.zeros(self.tokens.shape, np.float32)
        self.most = self.starts + config.gen_length
        """Positions that each answer may have, what is given before it included."""
        self.lengths = self.most.copy()
        """Positions that each answer has by now."""
        if not config.is_fixed:
            self.lengths = np.minimum(first_length(config), self.most)
        self.has_ended = np.zeros(len(prompt), bool)
        self.total_calls = self._planned_calls()
        """Most calls the run takes; blocks that are complete sooner save some."""
        self.stop_ids: tuple[int, ...] = config.stop_token_ids
        if config.stop_at_eos or not config.is_fixed:
            self.stop_ids = (model.eos_token_id, *self.stop_ids)
        self.fills_prompt = config.compat is not None and not self.known.all()

    @property
    def starts(self) -> Int[np.ndarray, " B"]:
        """Positions of the first blocks that belong to the prompts."""
        return self.tails + self.lead * self.config.block_length

    @property
    def has_given(self) -> bool:
        """Whether blocks begin inside the prompts."""
        return self.lead > 0 or bool(self.tails.any())

    @property
    def columns(self) -> int:
        """Positions of the longest answer."""
        return int((self.lengths - self.tails).max()) - self.spare

    @property
    def full_columns(self) -> int:
        """Positions that answers have at the end."""
        return int((self.most - self.tails).max()) - self.spare

    def _planned_calls(self) -> int:
        plan = unmasking_plan(self.config)
        if not self.config.infill and not self.config.start_block_align:
            return plan.total_calls
        blocks = self.tokens.reshape(len(self.tokens), -1, self.config.block_length)
        open_blocks = (blocks == self.model.mask_id).any(axis=(0, 2))
        return int(open_blocks.sum()) * plan.calls_per_block

    def num_blocks(self, rows: Int[np.ndarray, " R"]) -> Int[np.ndarray, " R"]:
        """Blocks that these answers have by now; the last one may be cut."""
        return -(-self.lengths[rows] // self.config.block_length)

    def canvas(self, rows: Int[np.ndarray, " R"], batch: int, block: int, step: int) -> Canvas:
        """Shows some rows to a device; the last one is repeated until there are `batch`."""
        rows = np.concatenate([rows, np.repeat(rows[-1:], batch - len(rows))])
        begin, widest = self.begin, int(self.lengths[rows].max())
        needed = begin + int(self.num_blocks(rows).max()) * self.config.block_length
        length = self.sizes.length(needed, is_growing=not self.config.is_fixed)
        exists = np.arange(widest) < self.lengths[rows, None]

        def lay(prompt: Any, answer: Any, rest: Any) -> Any:
            laid = np.full((batch, length), rest, np.asarray(answer).dtype)
            laid[:, :begin] = prompt
            laid[:, begin : begin + widest] = np.where(exists, answer, rest)
            return laid

        lead = np.arange(widest) < self.visible.shape[1] - begin
        shown, known = exists.copy(), np.zeros_like(exists)
        shown[:, lead] = self.visible[rows, begin:]
        known[:, lead] = self.known[rows, begin:]
        visible = lay(self.visible[rows, :begin], shown, False)
        is_wide = self.fills_prompt or self.config.reads_ahead
        policy = Policy.of(self.config, self.model, length if is_wide else self.config.block_length)
        if self.has_given:
            # End tokens of the prompt end nothing: the host looks behind it.
            room = widest if policy.answer_length else 0
            policy = dataclasses.replace(policy, stop_at_eos=False, answer_length=room)
        return Canvas(
            rows=rows,
            tokens=lay(self.prompt[rows], self.tokens[rows, :widest], self.model.eos_token_id),
            order=lay(NOT_COMMITTED, self.order[rows, :widest], NOT_COMMITTED),
            confidence=lay(0, self.confidence[rows, :widest], 0),
            visible=visible,
            known=lay(self.known[rows, :begin], known, False),
            positions=positions_of(visible),
            prompt_length=begin,
            gen_length=needed - begin,
            lead=self.lead,
            block=self._next_block(rows, block),
            step=step,
            policy=policy,
        )

    def _next_block(self, rows: Int[np.ndarray, " R"], block: int) -> int:
        """The first block with masks that is not before `block`; that one if there is none."""
        behind = self.is_open(rows)[:, block * self.config.block_length :].any(axis=0)
        return block + int(behind.argmax()) // self.config.block_length if behind.any() else block

    def merge(self, rows: Int[np.ndarray, " R"], snapshot: Snapshot) -> None:
        """Takes over what the device has come to; its first rows are these."""
        begin = self.begin
        self.prompt[rows] = snapshot.tokens[: len(rows), :begin]
        for row, *parts in zip(rows, *snapshot[:3], strict=False):
            answer = slice(0, self.lengths[row])
            there = slice(begin, begin + self.lengths[row])
            for whole, part in zip((self.tokens, self.order, self.confidence), parts, strict=True):
                whole[row, answer] = part[there]

    def is_open(self, rows: Int[np.ndarray, " R"]) -> Bool[np.ndarray, "R N"]:
        """Masks on the canvases of these rows, as far as the longest of them reaches."""
        widest = int(self.lengths[rows].max())
        exists = np.arange(widest) < self.lengths[rows, None]
        return exists & (self.tokens[rows, :widest] == self.model.mask_id)

    def open_rows(self, rows: Int[np.ndarray, " R"], block: int) -> Int[np.ndarray, " R"]:
        """Those of the rows that have blocks left after so many."""
        return rows[~self.has_ended[rows] & (self.num_blocks(rows) > block)]

    def finished_part(self, row: int, block: int) -> Int[np.ndarray, " n"]:
        """The tokens behind the prompt that a row has after so many blocks."""
        end = min(block * self.config.block_length, self.lengths[row])
        return self.tokens[row, self.starts[row] : end]

    def lengthen(self, rows: Int[np.ndarray, " R"], blocks: int, least: int = 0) -> None:
        """Gives rows that have not ended more blocks, or fewer.

        `least` blocks are kept, and `gen_length` is not exceeded.
        """
        rows, unit = rows[~self.has_ended[rows]], self.config.block_length
        lengths = (self.num_blocks(rows) + blocks) * unit
        self.lengths[rows] = np.clip(lengths, least * unit, self.most[rows])

    def end(self, row: int, block: int, step: int) -> None:
        """Ends a row after so many blocks and calls; what is behind becomes end tokens.

        Nobody predicted those, so their confidence is 0. A second end changes nothing.
        """
        if self.has_ended[row]:
            return
        self.has_ended[row] = True
        begin = min(block * self.config.block_length, self.lengths[row])
        blank = self.tokens[row, begin:] == self.model.mask_id
        self.tokens[row, begin:][blank] = self.model.eos_token_id
        self.order[row, begin:][blank] = step - 1

    def trace(self) -> Trace:
        """The record so far."""
        places = self.spare + np.arange(self.full_columns) + self.tails[:, None]
        tokens, order, confidence = (
            np.take_along_axis(part, places, axis=1)
            for part in (self.tokens, self.order, self.confidence)
        )
        return Trace(
            prompt=(self.prompt if self.shown_prompt is None else self.shown_prompt).copy(),
            tokens=tokens,
            order=order.astype(np.int16),
            confidence=confidence,
            mask_token_id=self.model.mask_id,
        )


def lay_out(
    model: ModelConfig,
    prompt: Any,
    config: SamplingConfig,
    attention_mask: Any = None,
    sizes: Sizes | None = None,
) -> Answers:
    """Checks a prompt and makes room for its answers.

    Args:
        model: ids and number of embedding rows.
        prompt: token ids [B, P].
        config: the sampler's options.
        attention_mask: [B, P], 1 for tokens, 0 for padding on the left; None: all are tokens.
        sizes: the shapes that the backend wants.

    Raises:
        UserError: shapes or ids that do not fit, or a mask in the prompt without `infill`.
    """
    prompt, visible = checked_prompt(model, prompt, config, attention_mask)
    return Answers(prompt, visible, config, model, sizes or Sizes())
