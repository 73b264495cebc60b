"""Running text -> rows of one length: tokenise, end with EOS, join, cut (LLaDA, 2502.09992v3, 2.2).

Documents are joined back to back, as the paper does. What is left over at the end is dropped once
per source and split. (Packing 1000 texts at a time and dropping each remainder, as others do,
loses half a row per thousand texts and lets the batch size of a reader decide what is trained on.)
"""

import functools
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxllada.common.data.bad_rows import BROKEN, BadRow, BadRows
from jaxllada.common.data.cache import ArrayWriter
from jaxllada.common.data.parts import Part
from jaxllada.common.data.rows import PackedRows
from jaxllada.common.errors import UserError
from jaxllada.common.tokenizer import Tokenizer

_BATCH_LETTERS = 1 << 21
_BATCH_TEXTS = 4096


def tokenised(
    part: Part,
    column: str,
    tokenizer: Tokenizer,
    *,
    insert_eos: bool,
    parallel: bool,
    start: int = 0,
    stop: int | None = None,
    bad: BadRows | None = None,
) -> Iterator[np.ndarray]:
    """Yields the ids of every document from row `start` on, int32; empty and bad ones as no ids.

    A column of ids is taken as it is (`insert_eos` is about text). Documents that hold the mask
    id, an id the tokenizer does not have, or no text go to `bad`, which by default refuses them.
    """
    place, bad = start, bad or BadRows("error")
    for texts in _batches(part, column, start, stop, bad):
        if texts and isinstance(texts[0], str):
            lists: Iterable[Any] = tokenizer.encode_batch(texts, parallel=parallel)
        else:
            lists = texts
        for ids in lists:
            ids = np.asarray(ids, np.int64)
            try:
                check_ids(ids, tokenizer)
            except BadRow as error:
                bad.note(functools.partial(part.where, place), error)
                ids = ids[:0]
            ends = len(ids) and ids[-1] == tokenizer.eos_id
            if insert_eos and len(ids) and not ends and isinstance(texts[0], str):
                ids = np.append(ids, tokenizer.eos_id)
            place += 1
            bad.read += 1
            yield ids.astype(np.int32)


def check_ids(ids: np.ndarray, tokenizer: Tokenizer) -> None:
    """Raises BadRow where ids hold the mask or lie outside the vocabulary."""
    if not len(ids):
        return
    if (ids == tokenizer.mask_id).any():
        token = tokenizer.core.id_to_token(tokenizer.mask_id)
        raise BadRow(
            "with the mask token", f"holds the mask token {token} (id {tokenizer.mask_id})"
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= tokenizer.vocab_size:
        raise BadRow(
            "with unknown ids",
            f"id {low if low < 0 else high} is outside the tokenizer's "
            f"{tokenizer.vocab_size} ids; was it prepared with another tokenizer?",
        )


def _batches(
    part: Part, column: str, start: int, stop: int | None, bad: BadRows
) -> Iterator[list[Any]]:
    texts: list[Any] = []
    letters = 0
    rows = itertools.islice(part.open(start), None if stop is None else stop - start)
    for place, row in enumerate(rows, start):
        value = row.get(column)
        if not isinstance(value, (str, list, np.ndarray)):
            kind = "nothing" if value is None else type(value).__name__
            detail = row.get(BROKEN, f"column {column!r} holds {kind}, expected text")
            reason = "broken line" if BROKEN in row else f"without {column}"
            bad.note(functools.partial(part.where, place), BadRow(reason, detail))
            value = [] if column == "input_ids" else ""
        texts.append(value)
        letters += len(value)
        if letters >= _BATCH_LETTERS or len(texts) >= _BATCH_TEXTS:
            yield texts
            texts, letters = [], 0
    if texts:
        yield texts


def as_arrays(documents: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Returns documents as one array of ids and where each ends."""
    held = list(documents)
    ids = np.concatenate([np.zeros(0, np.int32), *held])
    return {"ids": ids, "ends": np.cumsum([len(ids) for ids in held], dtype=np.int64)}


def from_arrays(piece: dict[str, np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the documents of `as_arrays`."""
    yield from np.split(piece["ids"], piece["ends"])[: len(piece["ends"])]


def pack(
    documents: Iterable[np.ndarray],
    max_length: int,
    folder: Path,
    *,
    vocab_size: int,
    pad_id: int,
    drop_tail: bool,
    never_empty: bool = False,
) -> dict[str, int]:
    """Joins documents and writes them as rows of `max_length` to `tokens.npy` of `folder`.

    `drop_tail` drops the short rest, unless `never_empty` is set and there is nothing else.

    Returns facts: documents, tokens (before cutting), rows, and tail: the tokens in use in the
    last row, which is filled up with `pad_id` (0 where no short row was kept).
    """
    dtype = np.uint16 if vocab_size <= 2**16 else np.int32
    writer = ArrayWriter(folder / "tokens.npy", dtype, max_length)
    count, total = 0, 0
    held: list[np.ndarray] = []
    size = 0
    for ids in documents:
        count, total = count + 1, total + len(ids)
        held.append(ids)
        size += len(ids)
        if size >= max(max_length, _BATCH_TEXTS * 64):
            joined = np.concatenate(held)
            whole = size - size % max_length
            writer.append(joined[:whole].reshape(-1, max_length))
            held, size = [joined[whole:]], size - whole
    joined = np.concatenate([*held, np.zeros(0, np.int32)])
    whole = size - size % max_length
    writer.append(joined[:whole].reshape(-1, max_length))
    tail = size - whole
    if drop_tail and not (never_empty and not writer.count):
        tail = 0
    if tail:
        last = np.full((1, max_length), pad_id, np.int32)
        last[0, :tail] = joined[whole:]
        writer.append(last)
    writer.close()
    return {"documents": count, "tokens": total, "rows": writer.count, "tail": tail}


def open_rows(folder: Path, facts: dict[str, int]) -> PackedRows:
    """Maps the rows that `pack` wrote."""
    tokens = np.load(folder / "tokens.npy", mmap_mode="r") if facts["rows"] else None
    if tokens is None:
        raise UserError(f"{folder}: no rows")
    lengths = None
    if facts["tail"]:
        lengths = np.full(len(tokens), tokens.shape[1])
        lengths[-1] = facts["tail"]
    return PackedRows(tokens, lengths)
