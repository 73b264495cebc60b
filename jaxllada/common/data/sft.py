"""Prompt/answer rows: ids, what the loss counts, and the answers of dialogues.

A dialogue of n answers is n prompt/answer pairs, each with the whole history as its prompt, of
which one is drawn per visit (LLaDA, arXiv:2502.09992v3, appendix B.1). It is stored once, with the
place of every answer; an answer reaches from behind its header through its end-of-turn token.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxllada.common.chat import check_messages
from jaxllada.common.data.bad_rows import BadRow, BadRows, readable
from jaxllada.common.data.formats import Format, messages_of, value_of
from jaxllada.common.data.parts import Part
from jaxllada.common.data.pretrain import check_ids
from jaxllada.common.data.rows import Row
from jaxllada.common.errors import UserError
from jaxllada.common.tokenizer import Tokenizer

Truncation = Literal["right", "filter"]
Turns = Literal["random", "last"]
IGNORED = -100
_BATCH = 512


def rows_of(
    part: Part,
    form: Format,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    truncation: Truncation = "right",
    mask_prompt_loss: bool = True,
    turns: Turns = "random",
    parallel: bool = False,
    bad: BadRows | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Row]:
    """Yields the rows of a part from number `start` on, each cut to `max_length`.

    Rows that cannot be trained on go to `bad`, which refuses or counts them (by default it
    refuses). UserError for what is wrong with all rows alike, such as shifted labels.
    """
    bad = bad or BadRows("error")
    left = itertools.islice(part.open(start), None if stop is None else stop - start)
    place = start
    while batch := list(itertools.islice(left, _BATCH)):
        for found in _batch(batch, form, tokenizer, turns, parallel):
            where = functools.partial(part.where, place)
            place += 1
            bad.read += 1
            try:
                row = found()
                check_ids(row.tokens, tokenizer)
                if not mask_prompt_loss:
                    row = Row(row.tokens, np.ones(len(row.tokens), bool))
                yield fitted(row, max_length, truncation)
            except _Systematic as error:
                raise UserError(f"{where()}: {error}") from None
            except BadRow as error:
                bad.note(where, error)


class _Systematic(UserError):
    """Something that is wrong with the data as a whole, told by one row."""


def _batch(
    rows: list[dict[str, Any]], form: Format, tokenizer: Tokenizer, turns: Turns, parallel: bool
) -> Iterator[Callable[[], Row]]:
    """Yields for every row what makes it, or raises BadRow; texts are tokenised together."""
    if form == "ids":
        yield from (functools.partial(_tokenised_row, row) for row in rows)
        return
    texts: list[_Conversation | BadRow] = []
    for row in rows:
        try:
            texts.append(_conversation(messages_of(readable(row), form), tokenizer, turns))
        except BadRow as error:
            texts.append(error)
    whole = [text for text in texts if isinstance(text, _Conversation)]
    pieces = [piece for text in whole for piece in (text.text, *text.prompts, *text.untils)]
    ids = iter(tokenizer.encode_batch(pieces, parallel=parallel))
    for text in texts:
        if isinstance(text, BadRow):
            yield functools.partial(_raise, text)
        else:
            tokens = next(ids)
            prompts = [next(ids) for _ in text.prompts]
            untils = [next(ids) for _ in text.untils]
            yield functools.partial(_row, text, tokenizer, tokens, prompts, untils)


def _raise(error: BadRow) -> Row:
    raise error


def _tokenised_row(row: dict[str, Any]) -> Row:
    tokens = np.asarray(value_of(readable(row), "input_ids"), np.int64)
    if row.get("labels") is not None:
        labels = np.asarray(row["labels"], np.int64)
        if labels.shape != tokens.shape:
            raise BadRow("malformed", f"{len(tokens)} input_ids but {len(labels)} labels")
        maskable = labels != IGNORED
        if (labels != tokens)[maskable].any():
            raise _Systematic(
                "labels differ from input_ids; a masked-diffusion model predicts the token of "
                "the same position, so do not shift them"
            )
    else:
        prompt_len = int(row.get("prompt_len") or 0)
        if not 0 <= prompt_len <= len(tokens):
            raise BadRow("malformed", f"prompt_len={prompt_len} of {len(tokens)} input_ids")
        maskable = np.arange(len(tokens)) >= prompt_len
    if row.get("attention_mask") is not None:
        used = np.asarray(row["attention_mask"], bool)
        tokens, maskable = tokens[used], maskable[used]
    if not maskable.any():
        raise BadRow("with an empty answer", "has no token to train on")
    return Row(tokens.astype(np.int32), maskable)


class _Conversation(NamedTuple):
    """A conversation as text, and its beginnings: up to and through each answer."""

    text: str
    prompts: list[str]
    untils: list[str]


def _conversation(messages: Any, tokenizer: Tokenizer, turns: Turns) -> _Conversation:
    try:
        messages = list(check_messages(messages))
    except UserError as error:
        raise BadRow("malformed", str(error)) from None
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise BadRow("without an answer", "has no answer (a message with role assistant)")
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if answers[0] == 0:
        raise BadRow("malformed", "begins with an answer; a user message comes first")
    wanted = answers if turns == "random" else answers[-1:]
    wanted = [i for i in wanted if messages[i]["content"].strip()]
    if not wanted:
        raise BadRow("with an empty answer", "the answer is empty")
    prompts = [tokenizer.conversation(messages[:i]) for i in wanted]
    untils = [tokenizer.conversation(messages[: i + 1], answered=True) for i in wanted]
    return _Conversation(tokenizer.conversation(messages, answered=True), prompts, untils)


def _row(
    text: _Conversation,
    tokenizer: Tokenizer,
    tokens: list[int],
    prompts: list[list[int]],
    untils: list[list[int]],
) -> Row:
    begins = all(tokens[: len(ids)] == ids for ids in (*prompts, *untils))
    if begins:
        spans = [(len(p), len(u)) for p, u in zip(prompts, untils, strict=True)]
    else:
        tokens, spans = _piecewise(text, tokenizer)
    ids = np.asarray(tokens, np.int32)
    if len(spans) == 1:
        start, end = spans[0]
        return Row(ids[:end], np.arange(end) >= start)
    return Row(ids, np.arange(len(ids)) >= spans[0][0], tuple(spans))


def _piecewise(
    text: _Conversation, tokenizer: Tokenizer
) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokenises prompts and answers apart, where together a token would reach over the border.

    The prompt is then what the model will see when it is asked, where it ends before the answer.
    """
    tokens: list[int] = []
    spans, done = [], 0
    for prompt, until in zip(text.prompts, text.untils, strict=True):
        if not (text.text.startswith(prompt) and text.text.startswith(until)):
            raise _Systematic(
                "with this chat template a prompt is not the beginning of its conversation, so "
                "the answer cannot be told from it"
            )
        tokens += tokenizer.encode(text.text[done : len(prompt)])
        start = len(tokens)
        tokens += tokenizer.encode(text.text[len(prompt) : len(until)])
        spans.append((start, len(tokens)))
        done = len(until)
    return tokens + tokenizer.encode(text.text[done:]), spans


def fitted(row: Row, max_length: int, truncation: Truncation) -> Row:
    """Cuts a row to `max_length` tokens; raises BadRow where nothing to train on is left.

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
        if turns:
            end = turns[-1][1]
            return Row(row.tokens[:end], row.maskable[:end], tuple(turns))
    elif len(row.tokens) <= max_length or truncation == "right":
        tokens, maskable = row.tokens[:max_length], row.maskable[:max_length]
        if maskable.any():
            return Row(tokens, maskable)
    prompt = row.turns[0][0] if row.turns else int(np.argmax(row.maskable))
    reason, length = "too long", f"has {len(row.tokens)} tokens, max_length={max_length}"
    if prompt >= max_length:
        reason = "with too long a prompt"
        length = f"the prompt has {prompt} tokens, max_length={max_length}"
    raise BadRow(reason, length, is_meant=truncation == "filter")
