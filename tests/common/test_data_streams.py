"""Properties of streamed rows: entered anywhere, resumed exactly, the same as the cache's."""

import numpy as np
import pytest

from jaxllada.common.data.batches import StreamSource, source_of
from jaxllada.common.data.row_stream import PackedStream
from jaxllada.common.data.sources import load_rows
from jaxllada.common.errors import UserError
from tests.common.row_files import *  # noqa: F403
from tests.common.row_files import (  # noqa: F401
    TEXTS,
    _own_data_caches,
    in_memory,
    joined_ids,
    options,
    write,
)


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
