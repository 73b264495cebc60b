"""Trains a byte-level BPE tokenizer with LLaDA's special tokens and chat template.

jaxllada tokenizer --dataset_args pystdlib --vocab_size 4096 --output_dir tokenizers/pystdlib
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxllada.common.errors import UserError

if TYPE_CHECKING:
    from jaxllada.common.data.parts import Part


@dataclass(frozen=True, kw_only=True)
class Config:
    dataset_args: str = "pystdlib"
    """Text to learn from: files, a save_to_disk folder, a Hub name, or pystdlib."""
    vocab_size: int = 4096
    """Number of ids, the six special tokens among them."""
    output_dir: str = "tokenizer"
    """Folder to write, in the layout of Hugging Face."""
    text_field: str = "text"
    """Column that holds the text (conversations are recognised by their columns)."""
    max_bytes: int = 200_000_000
    """Learn from at most this much text, in bytes."""
    overwrite_output_dir: bool = False
    """Replace a tokenizer that is already there."""

    def __post_init__(self) -> None:
        for key in ("vocab_size", "max_bytes"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}={getattr(self, key)}: expected at least 1")
        if not self.output_dir.strip():
            raise UserError(f"output_dir={self.output_dir!r}: expected a folder")


def run(config: Config) -> None:
    """Trains, writes the folder and prints what came out."""
    from jaxllada.common.data.grammar import parse_dataset_args
    from jaxllada.common.data.readers import Source
    from jaxllada.common.tokenizer import Tokenizer

    if (Path(config.output_dir) / "tokenizer.json").exists() and not config.overwrite_output_dir:
        raise UserError(
            f"output_dir={config.output_dir!r}: has a tokenizer already; "
            "choose another folder or set overwrite_output_dir: true"
        )
    parts = [Source(spec).parts() for spec in parse_dataset_args(config.dataset_args)]
    start = time.perf_counter()
    counted = {"texts": 0, "bytes": 0}

    def learnt() -> Iterator[str]:
        for found in parts:
            for text in _texts(found["train"], config.text_field):
                size = len(text.encode())
                if counted["bytes"] + size > config.max_bytes and counted["texts"]:
                    return
                counted["texts"] += 1
                counted["bytes"] += size
                yield text

    tokenizer = Tokenizer.train(learnt(), config.vocab_size)
    if not counted["bytes"]:
        raise UserError(f"dataset_args={config.dataset_args!r}: holds no text")
    tokenizer.save(config.output_dir)
    spent = time.perf_counter() - start
    print(
        f"learnt from {counted['bytes'] / 1e6:.1f} MB in {counted['texts']:,} texts, {spent:.1f} s"
    )
    print(
        f"vocabulary  {tokenizer.vocab_size:,} ids; mask {tokenizer.mask_id}, "
        f"end of text = padding {tokenizer.eos_id}, end of turn {tokenizer.eot_id}"
    )
    for split in ("train", "test"):
        ratio = _bytes_per_token(
            tokenizer, [found[split] for found in parts if split in found], config.text_field
        )
        if ratio:
            name = {"train": "training", "test": "validation"}[split]
            print(f"bytes/token {ratio:.2f} on {name} text")
    print(f"written to  {config.output_dir}")


def _texts(part: "Part", text_field: str) -> Iterator[str]:
    """Iterates over the texts of a part; a conversation gives the text of every message.

    Rows that cannot be read teach nothing and are passed over.
    """
    from jaxllada.common.chat import check_messages
    from jaxllada.common.data.bad_rows import readable
    from jaxllada.common.data.formats import format_of, messages_of

    form = format_of(part.columns, text_field, "auto", part.source)
    if form == "ids":
        raise UserError(f"dataset_args: {part.source} is tokenised already; a text is needed")
    for row in part.open(0):
        if form == "text":
            if isinstance(row.get(text_field), str):
                yield row[text_field]
            continue
        with contextlib.suppress(UserError):
            messages = check_messages(messages_of(readable(row), form))
            yield from (message["content"] for message in messages)


def _bytes_per_token(tokenizer, parts: "list[Part]", text_field: str, most: int = 2_000_000):
    """Bytes per token of the first `most` bytes, or 0 where there is no text."""
    texts, size = [], 0
    for part in parts:
        for text in _texts(part, text_field):
            texts.append(text)
            size += len(text.encode())
            if size >= most:
                break
    tokens = sum(map(len, tokenizer.encode_batch(texts)))
    return size / tokens if tokens else 0.0
