"""Tokenises a data set once: into the cache, or as a folder that `load_preprocessed_data` reads.

jaxllada prepare --dataset_args pystdlib --tokenizer_name_or_path tokenizers/pystdlib
jaxllada prepare --dataset_args alpaca.json+chats.jsonl --tokenizer_name_or_path llada-8b \\
    --output_dir data/alpaca

Interrupted, it goes on where it was when the command is given again.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxllada.common.errors import UserError

if TYPE_CHECKING:
    from jaxllada.common.data.rows import Row, Rows
    from jaxllada.common.tokenizer import Tokenizer

_SAMPLES = 3
_SHOWN_LETTERS = 400


@dataclass(frozen=True, kw_only=True)
class Config:
    dataset_args: str = ""
    """What to prepare, for example `data/c4[train:1000_000,test:1000]` or `pystdlib`."""
    tokenizer_name_or_path: str = ""
    """Tokenizer folder."""
    output_dir: str = ""
    """Folder to write with save_to_disk, the tokenizer beside it; empty: only fill the cache."""
    overwrite_output_dir: bool = False
    """Replace output_dir if it exists."""
    cache_dir: str = ""
    """Where tokenised data is kept; empty: $JAXLLADA_CACHE or ~/.cache/jaxllada."""
    max_length: int = 1024
    """Tokens per row; the most for prompt/answer rows."""
    text_field: str = "text"
    """Column that holds the text."""
    insert_eos: bool = True
    """End every document with EOS."""
    drop_tail: bool = True
    """Drop the last, short piece of the packed text."""
    num_proc: int = 1
    """Cores that tokenise."""
    load_preprocessed_data: bool = False
    """dataset_args names folders written by `save_to_disk`."""
    kind: Literal["auto", "pretrain", "sft"] = "auto"
    """Take rows as running text or as prompt and answer where a source could be both."""
    on_bad_row: Literal["skip", "error"] = "skip"
    """Rows without an answer or text, broken lines and the like: leave them out and say which, or
    stop at the first."""
    truncation: Literal["right", "filter"] = "right"
    """Prompt/answer rows longer than max_length: keep the first tokens, or filter them out."""
    mask_prompt_loss: bool = True
    """Count only answers in the loss."""
    dialogue_turns: Literal["random", "last"] = "random"
    """Write a dialogue as one row for each of its answers, with all before as the prompt (LLaDA,
    arXiv:2502.09992v3, B.1), or only the last."""

    def __post_init__(self) -> None:
        for key in ("dataset_args", "tokenizer_name_or_path"):
            if not getattr(self, key):
                raise UserError(f"{key} is missing; --help lists every key")
        for key in ("max_length", "num_proc"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}={getattr(self, key)}: expected at least 1")


def run(config: Config) -> None:
    """Prepares, shows three rows and prints what there is."""
    from jaxllada.common.data.preparing import prepare_sources
    from jaxllada.common.data.row_options import RowOptions
    from jaxllada.common.data.sources import for_chat, load_rows
    from jaxllada.common.tokenizer import Tokenizer

    target = Path(config.output_dir) if config.output_dir else None
    if target and target.exists() and any(target.iterdir()) and not config.overwrite_output_dir:
        raise UserError(
            f"output_dir={config.output_dir!r}: exists; choose another folder or set "
            "overwrite_output_dir: true"
        )
    options = RowOptions.of(config)
    tokenizer = for_chat(
        Tokenizer.from_folder(config.tokenizer_name_or_path), config.dataset_args, options
    )
    start = time.perf_counter()
    prepared = prepare_sources(config.dataset_args, tokenizer, options)
    rows = load_rows(config.dataset_args, tokenizer, options, tells=False)
    spent = time.perf_counter() - start
    _show(rows["train"], tokenizer)
    for folder, facts in prepared:
        for split, about in facts["splits"].items():
            first, *more = _summary(about)
            print(f"{facts['source']} {split}: {first}", *more, sep="\n")
        print(f"  in {folder}")
    if target:
        _save(target, rows, tokenizer)
        print(f"written to {target}; train with --load_preprocessed_data true")
    print(f"done in {spent:.1f} s")


def _summary(about: dict[str, Any]) -> list[str]:
    """Says in lines what a split holds, and what was left out of it and why."""
    lines = [f"{about['rows']:,} rows, {about['tokens']:,} tokens"]
    if "documents" in about:
        lines[0] += f" of {about['documents']:,} documents"
    else:
        share = 100 * about["supervised"] / max(1, about["tokens"])
        lines[0] += f" ({share:.0f} % in answers), {about['answers']:,} answers"
    if about["dropped"]:
        lines.append(f"  left out {about['dropped']:,} of {about['rows_read']:,} rows:")
        lines += [f"    {count:>7,} {reason}" for reason, count in about["left_out"].items()]
        lines += [f"    such as {text}" for text in about["examples"]]
    return lines


def _show(rows: "Rows", tokenizer: "Tokenizer") -> None:
    """Prints some rows; what is trained on is green on a terminal and marked elsewhere."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for number in range(min(_SAMPLES, len(rows))):
        place = number * len(rows) // min(_SAMPLES, len(rows))
        row = rows[place]
        row = row.turn(-1) if row.turns else row
        console.print(f"--- row {place}: {len(row.tokens)} tokens", markup=False)
        for counts, text in _stretches(row, tokenizer):
            if console.is_terminal:
                console.print(text, end="", style="bold green" if counts else "dim", markup=False)
            else:
                print(
                    text if row.maskable.all() else f"[{'answer' if counts else 'prompt'}] {text}"
                )
        if console.is_terminal:
            console.print()
    print("---")


def _stretches(row: "Row", tokenizer: "Tokenizer") -> "Iterator[tuple[bool, str]]":
    """Cuts a row where tokens begin or cease to count."""
    import numpy as np

    cuts = [0, *(np.flatnonzero(np.diff(row.maskable)) + 1).tolist(), len(row.tokens)]
    for start, end in itertools.pairwise(cuts):
        yield bool(row.maskable[start]), _shortened(tokenizer.decode(row.tokens[start:end]))


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_LETTERS else text[:_SHOWN_LETTERS] + " ..."


def _pairs(row: "Row") -> "Iterator[Row]":
    """A dialogue is written as one row per answer."""
    if row.turns:
        for number in range(len(row.turns)):
            yield row.turn(number)
    else:
        yield row


def _save(target: Path, rows: dict[str, Any], tokenizer: "Tokenizer") -> None:
    """Writes the splits as dllm does: input_ids and labels, and prompt_len for pairs."""
    import numpy as np
    from datasets import Dataset, DatasetDict, Features, Sequence, Value
    from datasets.arrow_writer import ArrowWriter

    from jaxllada.common.data.files import new_folder
    from jaxllada.common.data.sft import IGNORED

    is_text = rows["train"].pad_policy == "ignore"
    ids = Sequence(Value("int32"))
    columns = {"input_ids": ids, "labels": ids}
    features = Features(columns if is_text else {**columns, "prompt_len": Value("int32")})
    with new_folder(target, replace=True) as work:
        splits = {}
        for split, found in rows.items():
            scratch = work / f"{split}.arrow"
            writer = ArrowWriter(path=str(scratch), features=features)
            for i in range(len(found)):
                for row in _pairs(found[i]):
                    labels = np.where(row.maskable, row.tokens, IGNORED)
                    example: dict[str, Any] = {"input_ids": row.tokens, "labels": labels}
                    if not is_text:
                        example["prompt_len"] = int(np.argmax(row.maskable))
                    writer.write(example)
            writer.finalize()
            writer.close()
            splits[split] = Dataset.from_file(str(scratch))
        DatasetDict(splits).save_to_disk(str(work))
        del splits
        for scratch in work.glob("*.arrow"):
            scratch.unlink()
        tokenizer.save(work)
