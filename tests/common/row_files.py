"""Files of texts and pairs, a tokenizer for them, and what their rows should hold."""

import json

import pytest

from jaxllada.common.data.parts import Part
from jaxllada.common.data.row_options import RowOptions
from jaxllada.common.tokenizer import Tokenizer

TEXTS = [f"Text number {i} says: " + "word " * (i % 9) for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


@pytest.fixture(autouse=True)
def _own_data_caches(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def options(tmp_path, **changes):
    settings = dict(max_length=16, cache_dir=str(tmp_path / "cache"), progress=False)
    return RowOptions(**(settings | changes))


def in_memory(rows, columns=("text",)):
    return Part("memory", "train", columns, len(rows), lambda start: iter(rows[start:]))


def joined_ids(tokenizer, texts, eos=True):
    ids = [[*tokenizer.encode(t), *([tokenizer.eos_id] if eos and t else [])] for t in texts]
    return [i for row in ids for i in row]
