"""Properties of packing, prompt/answer rows, streams and the on-disk cache."""

import json
import os

import numpy as np
import pytest

from jaxllada.common.data import cache, pretrain, sft
from jaxllada.common.data.bad_rows import BadRow
from jaxllada.common.data.batches import StreamSource, source_of
from jaxllada.common.data.parts import Part
from jaxllada.common.data.preparing import prepare_sources
from jaxllada.common.data.row_options import RowOptions
from jaxllada.common.data.row_stream import PackedStream
from jaxllada.common.data.rows import Row
from jaxllada.common.data.sources import load_rows
from jaxllada.common.errors import UserError
from jaxllada.common.tokenizer import Tokenizer

TEXTS = [f"Text number {i} says: " + "word " * (i % 9) for i in range(60)]
LONG = {"messages": [{"role": "user", "content": "w " * 40}, {"role": "assistant", "content": "a"}]}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


@pytest.fixture(autouse=True)
def _own_caches(tmp_path, monkeypatch):
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


QUESTION = {"role": "user", "content": "2 + 2?"}
REPLY = {"role": "assistant", "content": "4"}
MORE = {"role": "user", "content": "sure?"}
AGAIN = {"role": "assistant", "content": "yes indeed"}


def sft_rows(tmp_path, tokenizer, rows, **changes):
    path = write(tmp_path / "s.jsonl", rows)
    change = {"max_length": 200} | changes
    return load_rows(f"{path}[test:0]", tokenizer, options(tmp_path, **change))["train"]


def test_a_pair_counts_its_answer_and_not_its_prompt(tmp_path, tokenizer):
    rows = sft_rows(tmp_path, tokenizer, [{"instruction": "2 + 2?", "input": "", "output": "4"}])
    row = rows[0]
    assert rows.pad_policy == "eos_supervised"
    assert tokenizer.decode(row.tokens) == tokenizer.render([QUESTION, REPLY])
    assert tokenizer.decode(row.tokens[~row.maskable]) == tokenizer.render([QUESTION])
    assert tokenizer.decode(row.tokens[row.maskable]) == "4<|eot_id|>"


def test_every_answer_of_a_dialogue_can_be_drawn(tmp_path, tokenizer):
    dialogue = [QUESTION, REPLY, MORE, AGAIN, MORE]
    rows = sft_rows(tmp_path, tokenizer, [{"messages": dialogue}])
    row = rows[0]
    assert len(row.turns) == 2
    for number, (upto, answer) in enumerate(((1, "4"), (3, "yes indeed"))):
        turn = row.turn(number)
        assert tokenizer.decode(turn.tokens) == tokenizer.render(dialogue[: upto + 1])
        assert tokenizer.decode(turn.tokens[turn.maskable]) == f"{answer}<|eot_id|>"
    last = sft_rows(tmp_path, tokenizer, [{"messages": dialogue}], dialogue_turns="last")[0]
    assert last.turns == ()
    assert tokenizer.decode(last.tokens[last.maskable]) == "yes indeed<|eot_id|>"


def test_prompts_can_be_counted_too(tmp_path, tokenizer):
    row = sft_rows(tmp_path, tokenizer, [{"prompt": "q", "response": "a"}], mask_prompt_loss=False)
    assert row[0].maskable.all()


def test_preprocessed_rows_keep_their_labels(tmp_path, tokenizer):
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "prompt_len": 1},
        {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8], "prompt_len": 1},
    ]
    found = sft_rows(tmp_path, tokenizer, rows)
    assert [found[i].tokens.tolist() for i in range(2)] == [[5, 6, 7], [5, 6, 7, 8]]
    assert found[1].maskable.tolist() == [False, True, False, True]
    plain = sft_rows(tmp_path, tokenizer, [{"input_ids": [5, 6, 7], "prompt_len": 2}])
    assert plain[0].maskable.tolist() == [False, False, True]
    padded = {"input_ids": [5, 6, 0], "prompt_len": 1, "attention_mask": [1, 1, 0]}
    assert sft_rows(tmp_path, tokenizer, [padded])[0].tokens.tolist() == [5, 6]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [5, 6], "labels": [5], "prompt_len": 0}, "2 input_ids but 1 labels"),
        ({"input_ids": [5, 6], "labels": [6, 7], "prompt_len": 0}, "do not shift"),
        ({"input_ids": [5, 6], "prompt_len": 3}, "prompt_len=3 of 2"),
        ({"messages": [QUESTION]}, "has no answer"),
        ({"messages": [REPLY]}, "begins with an answer"),
        ({"messages": [{"role": "bot", "content": ""}]}, r"s.jsonl:1: messages\[0\].role='bot'"),
        ({"prompt": "<|mdm_mask|>", "response": "a"}, "holds the mask token"),
    ],
)
def test_a_bad_pair_is_named(tmp_path, tokenizer, row, message):
    with pytest.raises(UserError, match=message):
        sft_rows(tmp_path, tokenizer, [row])


def row_of(size, prompt, turns=()):
    return Row(np.arange(size, dtype=np.int32), np.arange(size) >= prompt, turns)


@pytest.mark.parametrize(
    ("row", "truncation", "length"),
    [
        (row_of(10, 3), "right", 10),
        (row_of(11, 3), "right", 10),
        (row_of(20, 10), "right", None),
        (row_of(20, 9), "right", 10),
        (row_of(11, 3), "filter", None),
        (row_of(10, 3), "filter", 10),
        (row_of(20, 3, ((3, 6), (8, 20))), "right", 10),
        (row_of(20, 3, ((3, 6), (8, 20))), "filter", 6),
        (row_of(20, 12, ((12, 14), (18, 20))), "right", None),
    ],
)
def test_long_rows_are_cut_or_left_out(row, truncation, length):
    if length is None:
        with pytest.raises(BadRow, match="max_length=10"):
            sft.fitted(row, 10, truncation)
    else:
        kept = sft.fitted(row, 10, truncation)
        assert len(kept.tokens) == length
        np.testing.assert_array_equal(kept.tokens, row.tokens[:length])
        assert all(end <= 10 for _, end in kept.turns)


def test_rows_left_out_are_counted_and_none_left_is_an_error(tmp_path, tokenizer):
    rows = [LONG, {"messages": [QUESTION, REPLY]}]
    path = write(tmp_path / "s.jsonl", rows)
    change = dict(max_length=50, truncation="filter")
    _, facts = prepare_sources(f"{path}[test:0]", tokenizer, options(tmp_path, **change))[0]
    assert (facts["splits"]["train"]["rows"], facts["splits"]["train"]["dropped"]) == (1, 1)
    assert facts["splits"]["train"]["left_out"] == {"with too long a prompt": 1}
    message = "no row of .*train can be used; the first: .*s.jsonl:1: the prompt has .*max_length=5"
    with pytest.raises(UserError, match=message):
        load_rows(f"{path}[test:0]", tokenizer, options(tmp_path, max_length=5))


def test_text_and_pairs_do_not_mix(tmp_path, tokenizer):
    text = write(tmp_path / "a.jsonl", [{"text": t} for t in TEXTS])
    pairs = write(tmp_path / "b.jsonl", [{"prompt": "q", "response": "a"}] * 30)
    for streaming in (False, True):
        change = dict(streaming=streaming, max_length=64)
        with pytest.raises(UserError, match="cannot be mixed"):
            load_rows(f"{text}+{pairs}", tokenizer, options(tmp_path, **change))


def stream(tokenizer, texts=TEXTS, index=None):
    part = in_memory([{"text": t} for t in texts])
    settings = dict(max_length=16, insert_eos=True, parallel=False, index=index)
    return PackedStream([(part, "text")], tokenizer, **settings)


@pytest.mark.parametrize("mark_every", [1, 256])
def test_a_stream_entered_anywhere_goes_on_as_if_read_through(tokenizer, monkeypatch, mark_every):
    monkeypatch.setattr("jaxllada.common.data.row_stream._MARK_EVERY", mark_every)
    ids = joined_ids(tokenizer, TEXTS) * 3  # the tail runs into the next pass
    count = len(ids) // 16
    straight = stream(tokenizer)
    rows = straight(0)
    found = [next(rows).tokens.tolist() for _ in range(count)]
    assert found == np.array(ids[: count * 16]).reshape(-1, 16).tolist()
    assert (len(straight._marks) > 1) == (mark_every == 1)
    for source in (straight, stream(tokenizer)):
        for start in (0, 1, count // 2, count - 1):
            assert next(source(start)).tokens.tolist() == found[start]


def test_places_of_an_earlier_run_save_reading_again(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxllada.common.data.row_stream._MARK_EVERY", 5)
    index = tmp_path / "cache" / "stream.jsonl"
    rows = stream(tokenizer, index=index)(0)
    found = [next(rows).tokens.tolist() for _ in range(60)]
    with index.open("a") as file:
        file.write("[60, 0, 4")  # killed while writing
    later = stream(tokenizer, index=index)
    opened = []
    part, column = later.parts[0]
    later.parts[0] = (part._replace(open=lambda n: opened.append(n) or part.open(n)), column)
    assert next(later(50)).tokens.tolist() == found[50]
    assert opened[0] > 0


def test_a_stream_without_text_says_so(tokenizer):
    with pytest.raises(UserError, match="holds no text"):
        next(stream(tokenizer, ["", ""])(0))


@pytest.mark.parametrize("kind", ["text", "pairs"])
def test_streamed_batches_resume_exactly(tmp_path, tokenizer, kind, monkeypatch):
    monkeypatch.setattr("jaxllada.common.data.row_stream._MARK_EVERY", 10)
    if kind == "text":
        rows = [{"text": t} for t in TEXTS]
    else:
        rows = [{"prompt": t, "response": t[::-1]} for t in TEXTS]
    path = write(tmp_path / "d.jsonl", rows)
    change = dict(streaming=True, max_length=64)
    loaded = load_rows(f"{path}[test:7]", tokenizer, options(tmp_path, **change))
    settings = dict(seed=1, micro_batch=4, max_length=64, shuffle_block=6)
    settings |= dict(mask_id=tokenizer.mask_id, pad_id=tokenizer.pad_id)

    def source():
        return source_of(loaded["train"], **settings)

    straight = source()
    assert isinstance(straight, StreamSource)
    digests = [straight.batch(step).digest() for step in range(40)]
    resumed = source()
    assert [resumed.batch(step).digest() for step in range(23, 40)] == digests[23:]
    assert len(set(digests)) == 40
    assert len(list((tmp_path / "cache").glob("stream-*"))) == (kind == "text")
    if kind == "text":
        test = np.concatenate([loaded["test"][i].tokens for i in range(len(loaded["test"]))])
        assert test.tolist() == joined_ids(tokenizer, TEXTS[:7])
    else:
        assert len(loaded["test"]) == 7


def test_stream_and_cache_hold_the_same_rows(tmp_path, tokenizer):
    path = write(tmp_path / "d.jsonl", [{"text": t} for t in TEXTS])
    spec = f"{path}[test:9]"
    rows = load_rows(spec, tokenizer, options(tmp_path))["train"]
    streamed = load_rows(spec, tokenizer, options(tmp_path, streaming=True))["train"](0)
    for i in range(len(rows)):
        np.testing.assert_array_equal(next(streamed).tokens, rows[i].tokens)


def test_options_are_taken_from_a_configuration_of_the_same_names():
    class Settings:
        max_length = 77
        insert_eos = False
        learning_rate = 1.0

    found = RowOptions.of(Settings(), streaming=True)
    assert (found.max_length, found.insert_eos, found.streaming) == (77, False, True)
    with pytest.raises(UserError, match="max_length=0"):
        RowOptions(max_length=0)
