"""`dataset_args` -> rows: every source read, tokenised, cached and joined split by split."""

import dataclasses
import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxllada.common.chat import TEMPLATE
from jaxllada.common.data import pretrain, sft
from jaxllada.common.data.bad_rows import BadRows, OnBadRow, added, told
from jaxllada.common.data.cache import cached, content_name, default_folder
from jaxllada.common.data.formats import Format, Kind, format_of
from jaxllada.common.data.grammar import SourceSpec, parse_dataset_args
from jaxllada.common.data.readers import Part, Source
from jaxllada.common.data.row_stream import PackedStream, RowStream
from jaxllada.common.data.rows import JoinedRows, JoinedText, PackedRows, RaggedRows, Row, Rows
from jaxllada.common.data.shards import SHARD, Piece, pieces
from jaxllada.common.errors import UserError
from jaxllada.common.notices import notice
from jaxllada.common.tokenizer import CHAT_TOKENS, Tokenizer

__all__ = ["RowOptions", "SourceSpec", "load_rows", "parse_dataset_args", "prepare_sources"]


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


def for_chat(tokenizer: Tokenizer, dataset_args: str, options: RowOptions) -> Tokenizer:
    """Returns the tokenizer, with the tokens of the chat template where the data need them.

    Released base models lack them, though their embeddings have rows for them.
    """
    if all(tokenizer.core.token_to_id(token) is not None for token in CHAT_TOKENS):
        return tokenizer
    specs = parse_dataset_args(dataset_args)
    sources = [Source(spec, preprocessed=options.load_preprocessed_data) for spec in specs]
    forms = {_form(found["train"], options) for found in (source.parts() for source in sources)}
    if forms <= {"text", "packed_ids", "ids"} or tokenizer.template != TEMPLATE:
        return tokenizer
    notice(f"{tokenizer.source}: adding {', '.join(CHAT_TOKENS)} behind its vocabulary")
    return tokenizer.with_chat_tokens()


def load_rows(
    dataset_args: str, tokenizer: Tokenizer, options: RowOptions, *, tells: bool = True
) -> dict[str, Any]:
    """Returns `train` rows and, where the sources have any, `test` rows.

    Rows that were left out are told in one line per split, unless `tells` is off.
    Both are `Rows`, except that with `streaming` the training part is a stream of rows for
    `StreamSource`. Raises a UserError before anything is written where the text of
    `dataset_args`, a path, a column or a row is not right.
    """
    if options.streaming:
        return _streams(dataset_args, tokenizer, options)
    texts: dict[str, list[PackedRows]] = {}
    pairs: dict[str, list[Rows]] = {}
    for folder, facts in prepare_sources(dataset_args, tokenizer, options):
        for split, about in facts["splits"].items():
            if tells and (line := told(facts["source"], split, about)):
                notice(line)
            if facts["format"] == "packed":
                rows = pretrain.open_rows(folder / split, about)
                texts.setdefault(split, []).append(rows)
            else:
                pairs.setdefault(split, []).append(sft.SftRows(folder / split))
    joined: dict[str, Any] = {split: JoinedText(parts) for split, parts in texts.items()}
    joined |= {split: JoinedRows(parts) for split, parts in pairs.items()}
    return {s: rows.parts[0] if len(rows.parts) == 1 else rows for s, rows in joined.items()}


def prepare_sources(
    dataset_args: str, tokenizer: Tokenizer, options: RowOptions
) -> list[tuple[Path, dict[str, Any]]]:
    """Tokenises every source into the cache, unless it is there; returns folders and facts.

    Facts: source, format (packed or pairs), and per split what `pack` or `write_rows` counted.
    """
    specs = parse_dataset_args(dataset_args)
    sources = [Source(spec, preprocessed=options.load_preprocessed_data) for spec in specs]
    if options.num_proc > 1:  # read when the tokenizer first runs in parallel
        os.environ.setdefault("RAYON_NUM_THREADS", str(options.num_proc))
    folder = _cache_folder(options)
    results = []
    for source in sources:
        made_from = _made_from(source, tokenizer, options)

        partial = folder / content_name("partial", made_from)

        def build(work: Path, source: Source = source, partial: Path = partial) -> dict[str, Any]:
            return _build(work, source, tokenizer, options, partial)

        results.append(cached(folder, made_from, build))
        shutil.rmtree(partial, ignore_errors=True)
    if len({facts["format"] for _, facts in results}) > 1:
        raise UserError(
            f"dataset_args={dataset_args!r}: running text and prompt/answer rows cannot be mixed"
        )
    return results


def _made_from(source: Source, tokenizer: Tokenizer, options: RowOptions) -> dict[str, Any]:
    """Everything that decides what the rows of a source are."""
    deciding = ("max_length", "text_field", "insert_eos", "drop_tail", "kind", "truncation")
    deciding += ("on_bad_row",)
    return {
        "source": source.spec.path,
        "content": source.fingerprint(),
        "limits": source.spec.limits,
        "options": source.spec.options,
        "tokenizer": tokenizer.digest(),
    } | {name: getattr(options, name) for name in (*deciding, "mask_prompt_loss", "dialogue_turns")}


def _build(
    work: Path, source: Source, tokenizer: Tokenizer, options: RowOptions, partial: Path
) -> dict[str, Any]:
    facts: dict[str, Any] = {"source": source.spec.path, "format": "", "splits": {}}
    for split, part in source.parts().items():
        form = _form(part, options)
        facts["format"] = "packed" if form in ("text", "packed_ids") else "pairs"
        target = work / split
        target.mkdir()
        found: list[dict[str, Any]] = []
        is_small = part.size is not None and part.size <= SHARD
        make = functools.partial(_piece, part, form, tokenizer, options)
        made = _shown(pieces(None if is_small else partial, split, make), found, part, options)
        if facts["format"] == "packed":
            about: dict[str, Any] = pretrain.pack(
                (ids for piece in made for ids in pretrain.from_arrays(piece)),
                options.max_length,
                target,
                vocab_size=tokenizer.vocab_size,
                pad_id=tokenizer.pad_id,
                drop_tail=options.drop_tail,
                never_empty=split == "test",
            )
        else:
            about = sft.write_rows(made, target)
        about |= added(found)
        if not about["rows"]:
            raise UserError(_nothing_left(part, about, options))
        facts["splits"][split] = about
    return facts


def _nothing_left(part: Part, about: dict[str, Any], options: RowOptions) -> str:
    where, length = f"{part.source}, {part.split}", options.max_length
    if about["dropped"] and not about["tokens"]:
        first = about["examples"][0]
        return f"dataset_args: no row of {where} can be used; the first: {first}"
    if not about["tokens"]:
        return f"dataset_args: {where} holds no text"
    return (
        f"max_length={length}: {where} has only {about['tokens']} tokens; "
        "shorten max_length or set drop_tail: false"
    )


def _form(part: Part, options: RowOptions) -> str:
    """The format of a part, `packed_ids` being tokenised text without prompts."""
    form = format_of(part.columns, options.text_field, options.kind, part.source)
    if form != "ids" or options.kind == "sft" or "prompt_len" in part.columns:
        return form
    if "labels" in part.columns:
        for _, row in zip(range(100), part.open(0), strict=False):
            if sft.IGNORED in row["labels"]:
                return form
    return "packed_ids"


def _piece(
    part: Part, form: str, tokenizer: Tokenizer, options: RowOptions, start: int, stop: int
) -> Piece:
    bad = BadRows(options.on_bad_row)
    if form in ("text", "packed_ids"):
        arrays = pretrain.as_arrays(
            pretrain.tokenised(
                part,
                options.text_field if form == "text" else "input_ids",
                tokenizer,
                insert_eos=options.insert_eos,
                parallel=options.num_proc > 1,
                start=start,
                stop=stop,
                bad=bad,
            )
        )
    else:
        arrays = sft.as_arrays(_pairs(part, form, tokenizer, options, bad, start, stop))
    return Piece(arrays, bad.facts())


def _pairs(
    part: Part,
    form: Any,
    tokenizer: Tokenizer,
    options: RowOptions,
    bad: BadRows,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Row]:
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


def _shown(
    made: Iterator[Piece], found: list[dict[str, Any]], part: Part, options: RowOptions
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the arrays of pieces, collects their facts in `found` and shows how far it is."""
    from tqdm import tqdm

    hidden = None if options.progress else True  # None: only where stderr is a terminal
    title = f"tokenising {part.source} {part.split}"
    with tqdm(desc=title, total=part.size, unit=" rows", disable=hidden) as bar:
        for piece in made:
            found.append(piece.facts)
            bar.update(piece.facts["rows_read"])
            yield piece.arrays


def _cache_folder(options: RowOptions) -> Path:
    return Path(options.cache_dir).expanduser() if options.cache_dir else default_folder()


def _stream_index(sources: list[Source], tokenizer: Tokenizer, options: RowOptions) -> Path | None:
    """The file for the places of a stream; None for the Hub, whose content may change unseen."""
    if any(source.kind == "hub" for source in sources):
        return None
    made_from = [_made_from(source, tokenizer, options) for source in sources]
    return _cache_folder(options) / f"{content_name('stream', made_from)}.jsonl"


def _streams(dataset_args: str, tokenizer: Tokenizer, options: RowOptions) -> dict[str, Any]:
    specs = parse_dataset_args(dataset_args)
    sources = [Source(spec, preprocessed=options.load_preprocessed_data) for spec in specs]
    parts = [source.parts(streaming=True) for source in sources]
    forms = [_form(found["train"], options) for found in parts]
    packed = {form in ("text", "packed_ids") for form in forms}
    if len(packed) > 1:
        raise UserError(
            f"dataset_args={dataset_args!r}: running text and prompt/answer rows cannot be mixed"
        )
    tests = [
        (found["test"], form) for found, form in zip(parts, forms, strict=True) if "test" in found
    ]
    trains = [(found["train"], form) for found, form in zip(parts, forms, strict=True)]
    if packed == {True}:

        def columns(chosen: list[tuple[Part, str]]) -> list[tuple[Part, str]]:
            text = options.text_field
            return [(part, text if form == "text" else "input_ids") for part, form in chosen]

        def stream(chosen: list[tuple[Part, str]], index: Path | None = None) -> PackedStream:
            return PackedStream(
                columns(chosen),
                tokenizer,
                max_length=options.max_length,
                insert_eos=options.insert_eos,
                parallel=options.num_proc > 1,
                index=index,
                on_bad_row=options.on_bad_row,
            )

        found = {"train": stream(trains, _stream_index(sources, tokenizer, options))}
        return found | ({"test": stream(tests).all_rows()} if tests else {})

    bad = BadRows(options.on_bad_row, tells=True)

    def pairs(chosen: list[tuple[Part, str]]) -> RowStream:
        return RowStream(
            lambda: (
                row for part, form in chosen for row in _pairs(part, form, tokenizer, options, bad)
            ),
            max_length=options.max_length,
        )

    if not tests:
        return {"train": pairs(trains)}
    return {"train": pairs(trains), "test": RaggedRows(list(pairs(tests).once()))}
