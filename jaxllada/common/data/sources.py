"""`dataset_args` -> rows: every source read, tokenised, cached and joined split by split."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxllada.common.chat import TEMPLATE
from jaxllada.common.data import pretrain
from jaxllada.common.data.bad_rows import BadRows, told
from jaxllada.common.data.cache import content_name
from jaxllada.common.data.grammar import parse_dataset_args
from jaxllada.common.data.parts import Part
from jaxllada.common.data.preparing import cache_folder, made_from, prepare_sources
from jaxllada.common.data.readers import Source
from jaxllada.common.data.row_options import RowOptions, form_of, pairs_of
from jaxllada.common.data.row_stream import PackedStream, RowStream
from jaxllada.common.data.rows import JoinedRows, JoinedText, PackedRows, RaggedRows, Row, Rows
from jaxllada.common.data.sft_files import SftRows
from jaxllada.common.errors import UserError
from jaxllada.common.notices import notice
from jaxllada.common.tokenizer import Tokenizer
from jaxllada.common.vocabulary import CHAT_TOKENS


def for_chat(tokenizer: Tokenizer, dataset_args: str, options: RowOptions) -> Tokenizer:
    """Returns the tokenizer, with the tokens of the chat template where the data need them.

    Released base models lack them, though their embeddings have rows for them.
    """
    if all(tokenizer.core.token_to_id(token) is not None for token in CHAT_TOKENS):
        return tokenizer
    specs = parse_dataset_args(dataset_args)
    sources = [Source(spec, preprocessed=options.load_preprocessed_data) for spec in specs]
    forms = {form_of(found["train"], options) for found in (source.parts() for source in sources)}
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
                pairs.setdefault(split, []).append(SftRows(folder / split))
    joined: dict[str, Any] = {split: JoinedText(parts) for split, parts in texts.items()}
    joined |= {split: JoinedRows(parts) for split, parts in pairs.items()}
    return {s: rows.parts[0] if len(rows.parts) == 1 else rows for s, rows in joined.items()}


def _stream_index(sources: list[Source], tokenizer: Tokenizer, options: RowOptions) -> Path | None:
    """The file for the places of a stream; None for the Hub, whose content may change unseen."""
    if any(source.kind == "hub" for source in sources):
        return None
    origins = [made_from(source, tokenizer, options) for source in sources]
    return cache_folder(options) / f"{content_name('stream', origins)}.jsonl"


def _streams(dataset_args: str, tokenizer: Tokenizer, options: RowOptions) -> dict[str, Any]:
    specs = parse_dataset_args(dataset_args)
    sources = [Source(spec, preprocessed=options.load_preprocessed_data) for spec in specs]
    parts = [source.parts(streaming=True) for source in sources]
    forms = [form_of(found["train"], options) for found in parts]
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
        def rows() -> Iterator[Row]:
            for part, form in chosen:
                yield from pairs_of(part, form, tokenizer, options, bad)

        return RowStream(rows, max_length=options.max_length)

    if not tests:
        return {"train": pairs(trains)}
    return {"train": pairs(trains), "test": RaggedRows(list(pairs(tests).once()))}
