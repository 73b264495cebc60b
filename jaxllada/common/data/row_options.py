"""How sources become rows: the options, and what they make of a part."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from jaxllada.common.data import sft
from jaxllada.common.data.bad_rows import BadRows, OnBadRow
from jaxllada.common.data.formats import Format, Kind, format_of
from jaxllada.common.data.parts import Part
from jaxllada.common.data.rows import Row
from jaxllada.common.errors import UserError
from jaxllada.common.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowOptions:
    """How sources become rows; named like the training keys, see `of`."""

    max_length: int
    """Tokens per row; the most for prompt/answer rows."""
    text_field: str = "text"
    """Column of running text."""
    insert_eos: bool = True
    """End every text with EOS (tokenised data is taken as it is)."""
    drop_tail: bool = True
    """Drop the short rest of a source instead of padding it to a row (test text of less than one
    row is always padded)."""
    num_proc: int = 1
    """Cores that tokenise (a RAYON_NUM_THREADS of yours goes before)."""
    load_preprocessed_data: bool = False
    """Every source is a folder written by save_to_disk."""
    streaming: bool = False
    """Read while training; only the test rows are read beforehand."""
    kind: Kind = "auto"
    """Take rows as running text or as prompt and answer where a source could be both."""
    on_bad_row: OnBadRow = "skip"
    """Rows without an answer or text, broken lines and the like: leave them out and say which, or
    stop at the first."""
    truncation: sft.Truncation = "right"
    """Prompt/answer rows longer than max_length: keep the first tokens, or filter them out."""
    mask_prompt_loss: bool = True
    """Count only answers in the loss."""
    dialogue_turns: sft.Turns = "random"
    """Train on one answer of a dialogue drawn at each visit, or on the last."""
    cache_dir: str = ""
    """Where tokenised data is kept; empty: $JAXLLADA_CACHE or ~/.cache/jaxllada."""
    progress: bool = True
    """Show a progress bar on a terminal."""

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise UserError(f"max_length={self.max_length}: must be at least 1")

    @classmethod
    def of(cls, config: Any, **changes: Any) -> "RowOptions":
        """Takes the fields that a configuration has under the same names."""
        names = [field.name for field in dataclasses.fields(cls) if hasattr(config, field.name)]
        return cls(**{name: getattr(config, name) for name in names} | changes)


def form_of(part: Part, options: RowOptions) -> str:
    """The format of a part, `packed_ids` being tokenised text without prompts."""
    form = format_of(part.columns, options.text_field, options.kind, part.source)
    if form != "ids" or options.kind == "sft" or "prompt_len" in part.columns:
        return form
    if "labels" in part.columns:
        for _, row in zip(range(100), part.open(0), strict=False):
            if sft.IGNORED in row["labels"]:
                return form
    return "packed_ids"


def pairs_of(
    part: Part,
    form: Any,
    tokenizer: Tokenizer,
    options: RowOptions,
    bad: BadRows,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Row]:
    """Yields the prompt/answer rows of a part, as `sft.rows_of`."""
    known: Format = form
    return sft.rows_of(
        part,
        known,
        tokenizer,
        max_length=options.max_length,
        truncation=options.truncation,
        mask_prompt_loss=options.mask_prompt_loss,
        turns=options.dialogue_turns,
        parallel=options.num_proc > 1,
        bad=bad,
        start=start,
        stop=stop,
    )
