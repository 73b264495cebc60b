"""Tokenises every source of `dataset_args` into a folder of the cache, unless it is there."""

import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxllada.common.data import pretrain, sft_files
from jaxllada.common.data.bad_rows import BadRows, added
from jaxllada.common.data.cache import cached, content_name, default_folder
from jaxllada.common.data.grammar import parse_dataset_args
from jaxllada.common.data.parts import Part
from jaxllada.common.data.readers import Source
from jaxllada.common.data.row_options import RowOptions, form_of, pairs_of
from jaxllada.common.data.shards import SHARD, Piece, pieces
from jaxllada.common.errors import UserError
from jaxllada.common.tokenizer import Tokenizer


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
    folder = cache_folder(options)
    results = []
    for source in sources:
        origin = made_from(source, tokenizer, options)
        partial = folder / content_name("partial", origin)

        def build(work: Path, source: Source = source, partial: Path = partial) -> dict[str, Any]:
            return _build(work, source, tokenizer, options, partial)

        results.append(cached(folder, origin, build))
        shutil.rmtree(partial, ignore_errors=True)
    if len({facts["format"] for _, facts in results}) > 1:
        raise UserError(
            f"dataset_args={dataset_args!r}: running text and prompt/answer rows cannot be mixed"
        )
    return results


def made_from(source: Source, tokenizer: Tokenizer, options: RowOptions) -> dict[str, Any]:
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
        form = form_of(part, options)
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
            about = sft_files.write_rows(made, target)
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
        arrays = sft_files.as_arrays(pairs_of(part, form, tokenizer, options, bad, start, stop))
    return Piece(arrays, bad.facts())


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


def cache_folder(options: RowOptions) -> Path:
    """Where tokenised data is kept."""
    return Path(options.cache_dir).expanduser() if options.cache_dir else default_folder()
