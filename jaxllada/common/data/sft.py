"""Prompt/answer rows: ids, what the loss counts, and the answers of dialogues.

A dialogue of n answers is n prompt/answer pairs, each with the whole history as its prompt, of
which one is drawn per visit (LLaDA, arXiv:2502.09992v3, appendix B.1). It is stored once, with the
place of every answer; an answer reaches from behind its header through its end-of-turn token.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxllada.common.chat import check_messages
from jaxllada.common.data.cache import ArrayWriter
from jaxllada.common.data.formats import Format, messages_of
from jaxllada.common.data.padding import PadPolicy
from jaxllada.common.data.pretrain import check_ids
from jaxllada.common.data.readers import Part
from jaxllada.common.data.rows import Row
from jaxllada.common.errors import UserError
from jaxllada.common.tokenizer import Tokenizer

Truncation = Literal["right", "filter"]
Turns = Literal["random", "last"]
IGNORED = -100


def rows_of(
    part: Part,
    form: Format,
    tokenizer: Tokenizer,
    *,
    mask_prompt_loss: bool = True,
    turns: Turns = "random",
) -> Iterator[Row]:
    """Yields every row of a part, not yet cut to a length; errors name the row."""
    for place, row in enumerate(part.open(0)):
        where = part.where(place)
        if form == "ids":
            found = _tokenised_row(row, where)
        else:
            found = _conversation(messages_of(row, form, where), tokenizer, turns, where)
            if not mask_prompt_loss:
                found = Row(found.tokens, np.ones(len(found.tokens), bool))
        check_ids(found.tokens, tokenizer, where)
        yield found


def _tokenised_row(row: dict[str, Any], where: str) -> Row:
    tokens = np.asarray(row["input_ids"], np.int64)
    if row.get("labels") is not None:
        labels = np.asarray(row["labels"], np.int64)
        if labels.shape != tokens.shape:
            raise UserError(f"{where}: {len(tokens)} input_ids but {len(labels)} labels")
        maskable = labels != IGNORED
        if (labels != tokens)[maskable].any():
            raise UserError(
                f"{where}: labels differ from input_ids; a masked-diffusion model predicts the "
                "token of the same position, so do not shift them"
            )
    else:
        prompt_len = int(row.get("prompt_len") or 0)
        if not 0 <= prompt_len <= len(tokens):
            raise UserError(f"{where}: prompt_len={prompt_len} of {len(tokens)} input_ids")
        maskable = np.arange(len(tokens)) >= prompt_len
    if row.get("attention_mask") is not None:
        used = np.asarray(row["attention_mask"], bool)
        tokens, maskable = tokens[used], maskable[used]
    return Row(tokens.astype(np.int32), maskable)


def _conversation(messages: Any, tokenizer: Tokenizer, turns: Turns, where: str) -> Row:
    messages = list(check_messages(messages, f"{where}, messages"))
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise UserError(f"{where}: has no answer (a message with role assistant)")
    tokens = tokenizer.chat(messages, add_generation_prompt=False)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if answers[0] == 0:
        raise UserError(f"{where}: begins with an answer; a user message comes first")
    spans = []
    for i in answers if turns == "random" else answers[-1:]:
        prompt = tokenizer.chat(messages[:i], add_generation_prompt=True)
        until = tokenizer.chat(messages[: i + 1], add_generation_prompt=False)
        if tokens[: len(prompt)] != prompt or tokens[: len(until)] != until:
            raise UserError(
                f"{where}: with this chat template a prompt is not the beginning of its "
                "conversation, so the answer cannot be told from it"
            )
        spans.append((len(prompt), len(until)))
    ids = np.asarray(tokens, np.int32)
    if len(spans) == 1:
        return Row(ids, np.arange(len(ids)) >= spans[0][0])
    return Row(ids, np.arange(len(ids)) >= spans[0][0], tuple(spans))


def fitted(row: Row, max_length: int, truncation: Truncation) -> Row | None:
    """Cuts a row to `max_length` tokens, or returns None where nothing to train on is left.

    `right` keeps the first tokens; `filter` leaves out rows (and answers of dialogues) that are
    longer.
    """
    if row.turns:
        limit = max_length if truncation == "filter" else None
        turns = [
            (start, min(end, max_length))
            for start, end in row.turns
            if start < max_length and (limit is None or end <= limit)
        ]
        if not turns:
            return None
        end = turns[-1][1]
        return Row(row.tokens[:end], row.maskable[:end], tuple(turns))
    if len(row.tokens) > max_length and truncation == "filter":
        return None
    tokens, maskable = row.tokens[:max_length], row.maskable[:max_length]
    return Row(tokens, maskable) if maskable.any() else None


def write_rows(
    rows: Iterable[Row], folder: Path, *, max_length: int, truncation: Truncation
) -> dict[str, int]:
    """Writes rows as flat arrays; returns facts: rows kept, rows dropped, tokens, answers."""
    names = {"tokens": np.int32, "maskable": np.bool_, "ends": np.int64, "turn_ends": np.int64}
    writers = {name: ArrayWriter(folder / f"{name}.npy", dtype) for name, dtype in names.items()}
    writers["turns"] = ArrayWriter(folder / "turns.npy", np.int32, 2)
    dropped = 0
    for row in rows:
        kept = fitted(row, max_length, truncation)
        if kept is None:
            dropped += 1
            continue
        writers["tokens"].append(kept.tokens)
        writers["maskable"].append(kept.maskable)
        writers["ends"].append(np.array([writers["tokens"].count]))
        writers["turns"].append(np.array(kept.turns, np.int32).reshape(-1, 2))
        writers["turn_ends"].append(np.array([writers["turns"].count]))
    for writer in writers.values():
        writer.close()
    count = writers["ends"].count
    return {
        "rows": count,
        "dropped": dropped,
        "tokens": writers["tokens"].count,
        "answers": max(count, writers["turns"].count),
    }


class SftRows:
    """Prompt/answer rows mapped from the files that `write_rows` wrote."""

    pad_policy: PadPolicy = "eos_supervised"

    def __init__(self, folder: Path):
        self.row_length: int | None = None
        self.ends = np.load(folder / "ends.npy")
        self.turn_ends = np.load(folder / "turn_ends.npy")
        self.turns = np.load(folder / "turns.npy")
        if not len(self.ends):  # and an empty file could not be mapped
            raise UserError(f"{folder}: no rows")
        self.tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        self.maskable = np.load(folder / "maskable.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.ends)

    def _span(self, ends: np.ndarray, index: int) -> slice:
        return slice(int(ends[index - 1]) if index else 0, int(ends[index]))

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self.ends):
            raise IndexError(index)
        place = self._span(self.ends, index)
        turns = self.turns[self._span(self.turn_ends, index)]
        return Row(
            np.asarray(self.tokens[place]),
            np.asarray(self.maskable[place]),
            tuple((int(start), int(end)) for start, end in turns),
        )

    def length(self, index: int) -> int:
        place = self._span(self.ends, index)
        return place.stop - place.start
