"""Rows that cannot be trained on are counted, named by file and line, and survived or refused."""

import json

import numpy as np
import pytest

from jaxllada.common.data import preparing, shards
from jaxllada.common.data.json_lines import JsonRows
from jaxllada.common.data.preparing import prepare_sources
from jaxllada.common.data.row_options import RowOptions
from jaxllada.common.data.sources import load_rows
from jaxllada.common.errors import UserError
from jaxllada.common.tokenizer import Tokenizer

GOOD = [{"instruction": f"Count to {i}", "input": "", "output": "one two"} for i in range(30)]
BAD = {
    "with an empty answer": {"instruction": "Say nothing", "input": "", "output": "  "},
    "without output": {"instruction": "Say it"},
    "with too long a prompt": {"instruction": "word " * 200, "input": "", "output": "yes"},
    "with the mask token": {"instruction": "x", "input": "", "output": "a <|mdm_mask|> b"},
    "malformed": {"instruction": "x", "input": "", "output": 5},
    "broken line": None,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([row["instruction"] for row in GOOD], 300)


@pytest.fixture(autouse=True)
def _own_caches(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


def options(tmp_path, **changes):
    settings = dict(max_length=96, cache_dir=str(tmp_path / "cache"), progress=False)
    return RowOptions(**(settings | changes))


def write(path, rows):
    lines = [json.dumps(row) if row is not None else '{"instruction": "x", ' for row in rows]
    path.write_text("\n".join(lines) + "\n\n")
    return f"{path}[test:0]"


def test_every_kind_is_counted_and_named_and_the_rest_is_trained_on(tmp_path, tokenizer, capsys):
    spec = write(tmp_path / "d.jsonl", [*GOOD[:10], *BAD.values(), *GOOD[10:]])
    _, facts = prepare_sources(spec, tokenizer, options(tmp_path))[0]
    about = facts["splits"]["train"]
    assert about["left_out"] == dict.fromkeys(BAD, 1)
    assert (about["rows"], about["rows_read"], about["dropped"]) == (30, 36, 6)
    for number, text in enumerate(about["examples"]):
        assert text.startswith(f"{tmp_path}/d.jsonl:{11 + number}: ")
    rows = load_rows(spec, tokenizer, options(tmp_path))["train"]
    good = load_rows(write(tmp_path / "good.jsonl", GOOD), tokenizer, options(tmp_path))["train"]
    for i in range(30):
        np.testing.assert_array_equal(rows[i].tokens, good[i].tokens)
    told = capsys.readouterr().err
    assert "d.jsonl train: 6 of 36 rows left out (1 with an empty answer, 1 without output" in told
    assert f"the first: {tmp_path}/d.jsonl:11: the answer is empty" in told


@pytest.mark.parametrize("kind", list(BAD))
def test_every_kind_is_refused_where_that_is_asked_for(tmp_path, tokenizer, kind):
    spec = write(tmp_path / "d.jsonl", [*GOOD[:4], BAD[kind], *GOOD[4:]])
    with pytest.raises(UserError, match=r"d.jsonl:5: .*\(on_bad_row=skip leaves such rows out\)"):
        load_rows(spec, tokenizer, options(tmp_path, on_bad_row="error"))


def test_rows_are_named_by_their_line_behind_limits_and_splits(tmp_path, tokenizer):
    rows = [*GOOD, *GOOD]
    rows[41] = BAD["with an empty answer"]
    path = write(tmp_path / "d.jsonl", rows).removesuffix("[test:0]")
    for spec in (path, f"{path}[test:20]", f"{path}[train:45,test:5]"):
        with pytest.raises(UserError, match="d.jsonl:42: the answer is empty"):
            load_rows(spec, tokenizer, options(tmp_path, on_bad_row="error"))


def test_rows_that_a_setting_leaves_out_are_not_refused(tmp_path, tokenizer):
    long = {"instruction": "x", "input": "", "output": "word " * 200}
    spec = write(tmp_path / "d.jsonl", [*GOOD, long])
    change = dict(on_bad_row="error", truncation="filter")
    _, facts = prepare_sources(spec, tokenizer, options(tmp_path, **change))[0]
    assert facts["splits"]["train"]["left_out"] == {"too long": 1}
    kept = load_rows(spec, tokenizer, options(tmp_path, on_bad_row="error"))["train"]
    assert max(kept.length(i) for i in range(31)) == 96


def test_text_rows_are_left_out_too(tmp_path, tokenizer):
    rows = [{"text": "some words " * 20}, {"text": "a <|mdm_mask|> b"}, {"text": None}]
    spec = write(tmp_path / "d.jsonl", rows)
    _, facts = prepare_sources(spec, tokenizer, options(tmp_path, max_length=8))[0]
    about = facts["splits"]["train"]
    assert about["left_out"] == {"with the mask token": 1, "without text": 1}
    alone = write(tmp_path / "alone.jsonl", rows[:1])
    _, expected = prepare_sources(alone, tokenizer, options(tmp_path, max_length=8))[0]
    assert about["tokens"] == expected["splits"]["train"]["tokens"]


def test_shifted_labels_are_never_taken_for_single_bad_rows(tmp_path, tokenizer):
    rows = [{"input_ids": [5, 6, 7], "labels": [6, 7, 5], "prompt_len": 0}] * 3
    with pytest.raises(UserError, match="do not shift them"):
        load_rows(write(tmp_path / "d.jsonl", rows), tokenizer, options(tmp_path))


@pytest.mark.parametrize("start", [0, 1, 4, 7])
def test_json_files_are_read_from_any_row(tmp_path, start):
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n\n{"x": 2, "y": 3}\nbroken\n[1]\n')
    (tmp_path / "b.json").write_text(json.dumps([{"x": 7}, {"x": 8}]))
    (tmp_path / "c.jsonl").write_text('{"x": 9}')
    rows = JsonRows([tmp_path / name for name in ("a.jsonl", "b.json", "c.jsonl")])
    assert (len(rows), rows.column_names) == (7, ("x", "y"))
    found = list(rows.rows(start))
    assert [row.get("x") for row in found] == [1, 2, None, None, 7, 8, 9][start:]
    names = [rows.name(i).removeprefix(f"{tmp_path}/") for i in range(7)]
    assert names == ["a.jsonl:1", "a.jsonl:3", "a.jsonl:4", "a.jsonl:5", "b.json, item 1",
                     "b.json, item 2", "c.jsonl:1"]  # fmt: skip


@pytest.mark.parametrize("kind", ["pairs", "text"])
def test_preparing_goes_on_where_it_was_stopped(tmp_path, tokenizer, monkeypatch, kind):
    """Killed behind the second piece of five; afterwards only the others are made."""
    rows = GOOD if kind == "pairs" else [{"text": row["instruction"] * 9} for row in GOOD]
    spec = write(tmp_path / "d.jsonl", rows)
    monkeypatch.setattr(preparing, "SHARD", 6)
    monkeypatch.setattr(shards.pieces, "__kwdefaults__", {"size": 6})
    made, real = [], preparing._piece

    def piece(*arguments):
        if len(made) == 2 and not (tmp_path / "again").exists():
            raise KeyboardInterrupt
        made.append(arguments[-2])
        return real(*arguments)

    monkeypatch.setattr(preparing, "_piece", piece)
    with pytest.raises(KeyboardInterrupt):
        load_rows(spec, tokenizer, options(tmp_path, max_length=48))
    (tmp_path / "again").touch()
    resumed = load_rows(spec, tokenizer, options(tmp_path, max_length=48))["train"]
    assert made == [0, 6, 12, 18, 24, 30]
    assert [path.name[:7] for path in (tmp_path / "cache").iterdir()] == ["tokens-"]
    monkeypatch.setattr(preparing, "SHARD", 4096)
    whole = options(tmp_path, max_length=48, cache_dir=str(tmp_path / "other"))
    straight = load_rows(spec, tokenizer, whole)["train"]
    assert len(resumed) == len(straight)
    for i in range(len(straight)):
        np.testing.assert_array_equal(resumed[i].tokens, straight[i].tokens)
        np.testing.assert_array_equal(resumed[i].maskable, straight[i].maskable)
