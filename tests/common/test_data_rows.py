"""Properties of packed text and of the on-disk cache."""

import os

import numpy as np
import pytest

from jaxllada.common.data import cache, pretrain
from jaxllada.common.data.preparing import prepare_sources
from jaxllada.common.data.row_options import RowOptions
from jaxllada.common.data.sources import load_rows
from jaxllada.common.errors import UserError
from jaxllada.common.tokenizer import Tokenizer
from tests.common.row_files import *  # noqa: F403
from tests.common.row_files import (  # noqa: F401
    TEXTS,
    _own_data_caches,
    in_memory,
    joined_ids,
    options,
    write,
)


@pytest.mark.parametrize("insert_eos", [True, False])
@pytest.mark.parametrize("drop_tail", [True, False])
@pytest.mark.parametrize("num_proc", [1, 2])
def test_packing_joins_and_cuts_every_text(tmp_path, tokenizer, insert_eos, drop_tail, num_proc):
    path = write(tmp_path / "d.jsonl", [{"text": t} for t in TEXTS])
    change = dict(insert_eos=insert_eos, drop_tail=drop_tail, num_proc=num_proc)
    rows = load_rows(f"{path}[test:10]", tokenizer, options(tmp_path, **change))
    for split, texts in (("test", TEXTS[:10]), ("train", TEXTS[10:])):
        expected = joined_ids(tokenizer, texts, insert_eos)
        found = [int(i) for r in range(len(rows[split])) for i in rows[split][r].tokens]
        assert found == (expected[: len(expected) // 16 * 16] if drop_tail else expected)
        assert all(rows[split][r].maskable.all() for r in range(len(rows[split])))


def test_an_eos_in_the_text_is_not_doubled_and_empty_texts_add_nothing(tokenizer):
    rows = [{"text": "a<|endoftext|>"}, {"text": ""}, {"text": "b"}]
    ids = pretrain.tokenised(in_memory(rows), "text", tokenizer, insert_eos=True, parallel=False)
    eos = tokenizer.eos_id
    assert [x.tolist() for x in ids] == [
        [*tokenizer.encode("a"), eos],
        [],
        [*tokenizer.encode("b"), eos],
    ]


@pytest.mark.parametrize("sizes", [[5, 40, 3], [16, 16], [1] * 33, [300_000, 7]])
def test_rows_are_full_whatever_the_documents_are(tmp_path, sizes):
    documents, start = [], 0
    for size in sizes:
        documents.append(np.arange(start, start + size, dtype=np.int32))
        start += size
    facts = pretrain.pack(
        iter(documents), 16, tmp_path, vocab_size=10**6, pad_id=7, drop_tail=False
    )
    assert (facts["documents"], facts["tokens"]) == (len(sizes), start)
    rows = pretrain.open_rows(tmp_path, facts)
    np.testing.assert_array_equal(
        np.concatenate([rows[i].tokens for i in range(len(rows))]), np.arange(start)
    )
    assert [rows.length(i) for i in range(len(rows) - 1)] == [16] * (len(rows) - 1)


def test_tokenised_text_is_taken_as_it_is(tmp_path, tokenizer):
    ids = [
        {"input_ids": list(range(i, i + 16)), "labels": list(range(i, i + 16))} for i in range(6)
    ]
    path = write(tmp_path / "d.jsonl", ids)
    rows = load_rows(f"{path}[test:1]", tokenizer, options(tmp_path))
    found = [rows["train"][i].tokens.tolist() for i in range(len(rows["train"]))]
    assert found == [row["input_ids"] for row in ids[1:]]
    assert rows["train"].pad_policy == "ignore"


def test_sources_are_joined_split_by_split(tmp_path, tokenizer):
    paths = []
    for name in ("x", "y"):
        paths.append(write(tmp_path / f"{name}.jsonl", [{"text": f"{name} {t}"} for t in TEXTS]))
    rows = load_rows(f"{paths[0]}[test:5] + {paths[1]}[test:20]", tokenizer, options(tmp_path))
    for split, ends in (("test", (0, 5)), ("train", (5, 60))):
        first = joined_ids(tokenizer, [f"x {t}" for t in TEXTS[slice(*ends)]])
        n = len(first) // 16
        found = [int(i) for r in range(n) for i in rows[split][r].tokens]
        assert found == first[: n * 16]
        assert tokenizer.decode(rows[split][n].tokens).startswith("y Text number")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text": "a <|mdm_mask|> b"},
            r"d.jsonl:3: holds the mask token <\|mdm_mask\|>",
        ),
        ({"text": None}, "d.jsonl:3: column 'text' holds nothing"),
    ],
)
def test_a_bad_text_is_named_by_its_row(tmp_path, tokenizer, row, message):
    path = write(tmp_path / "d.jsonl", [{"text": "good"}, {"text": "also"}, row])
    with pytest.raises(UserError, match=message):
        load_rows(f"{path}[test:1]", tokenizer, options(tmp_path, on_bad_row="error"))
    assert not list((tmp_path / "cache").glob("*"))


def test_ids_of_another_tokenizer_are_refused(tmp_path, tokenizer):
    path = write(tmp_path / "d.jsonl", [{"input_ids": [5, 700]}] * 30)
    message = f"id 700 is outside the tokenizer's {tokenizer.vocab_size} ids"
    with pytest.raises(UserError, match=message):
        load_rows(path, tokenizer, options(tmp_path))


def test_too_little_text_says_so(tmp_path, tokenizer):
    path = write(tmp_path / "d.jsonl", [{"text": "short"}] * 3)
    with pytest.raises(UserError, match="max_length=512: .* has only"):
        load_rows(f"{path}[test:0]", tokenizer, options(tmp_path, max_length=512))
    blank = write(tmp_path / "e.jsonl", [{"text": ""}] * 3)
    with pytest.raises(UserError, match="holds no text"):
        load_rows(f"{blank}[test:0]", tokenizer, options(tmp_path))


def test_test_text_below_one_row_is_padded_and_not_dropped(tmp_path, tokenizer):
    path = write(tmp_path / "d.jsonl", [{"text": t} for t in TEXTS])
    rows = load_rows(f"{path}[test:1]", tokenizer, options(tmp_path, max_length=256))
    assert [rows["test"][i].tokens.tolist() for i in range(len(rows["test"]))] == [
        joined_ids(tokenizer, TEXTS[:1])
    ]
    assert rows["train"].lengths is None


def test_a_second_start_reads_the_cache_and_a_change_does_not(tmp_path, tokenizer, monkeypatch):
    path = write(tmp_path / "d.jsonl", [{"text": t} for t in TEXTS])

    def folder(spec=path, known=tokenizer, **changes):
        return prepare_sources(spec, known, options(tmp_path, **changes))[0][0]

    first = folder()
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "tokenised", lambda *_, **__: pytest.fail("tokenised again"))
        assert folder() == first
        assert folder(num_proc=2) == first
    others = {
        folder(max_length=8),
        folder(insert_eos=False),
        folder(drop_tail=False),
        folder(f"{path}[train:50]"),
        folder(known=Tokenizer.train(TEXTS, 270)),
    }
    write(tmp_path / "d.jsonl", [{"text": t} for t in TEXTS[:-1]])
    others.add(folder())
    assert len(others - {first}) == 6


@pytest.mark.parametrize("damage", ["shorten", "flip", "remove", "note"])
def test_a_damaged_cache_is_built_again(tmp_path, tokenizer, damage):
    path = write(tmp_path / "d.jsonl", [{"text": t} for t in TEXTS])
    folder, facts = prepare_sources(path, tokenizer, options(tmp_path))[0]
    file = folder / "train" / "tokens.npy"
    good = file.read_bytes()
    if damage == "shorten":
        os.truncate(file, len(good) - 2)
    elif damage == "flip":
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    elif damage == "remove":
        file.unlink()
    else:
        (folder / "made_from.json").write_text("{")
    assert prepare_sources(path, tokenizer, options(tmp_path)) == [(folder, facts)]
    assert file.read_bytes() == good


def test_large_files_are_sealed_at_both_ends(tmp_path):
    file = tmp_path / "big.npy"
    content = np.random.default_rng(0).bytes(cache._BLOCK * cache._BLOCKS + 1000)
    seals = []
    for place in (None, 0, len(content) - 1):
        changed = bytearray(content)
        if place is not None:
            changed[place] ^= 1
        file.write_bytes(changed)
        seals.append(cache._seal(file)[1])
    assert len(set(seals)) == 3


def test_a_growing_array_file_is_a_plain_npy_file(tmp_path):
    for width, shape in ((None, (70_000,)), (7, (10_000, 7))):
        expected = np.arange(70_000, dtype=np.int32).reshape(shape)
        writer = cache.ArrayWriter(tmp_path / "a.npy", np.int32, width)
        for block in np.array_split(expected, 13):
            writer.append(block)
        writer.close()
        np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)


def test_a_failed_build_leaves_nothing_behind(tmp_path):
    def build(work):
        (work / "a.npy").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cache.cached(tmp_path, {"x": 1}, build)
    assert list(tmp_path.iterdir()) == []


def test_options_are_taken_from_a_configuration_of_the_same_names():
    class Settings:
        max_length = 77
        insert_eos = False
        learning_rate = 1.0

    found = RowOptions.of(Settings(), streaming=True)
    assert (found.max_length, found.insert_eos, found.streaming) == (77, False, True)
    with pytest.raises(UserError, match="max_length=0"):
        RowOptions(max_length=0)
