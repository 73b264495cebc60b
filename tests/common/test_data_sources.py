"""Properties of the dataset_args grammar and of the readers behind it."""

import gzip
import json
import lzma

import pytest

from jaxllada.common.data.formats import format_of, messages_of
from jaxllada.common.data.grammar import SourceSpec, parse_dataset_args
from jaxllada.common.data.readers import Source
from jaxllada.common.errors import UserError


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def numbered(count, prefix="row"):
    return [{"text": f"{prefix} {i}"} for i in range(count)]


def texts(part):
    return [row["text"] for row in part.open(0)]


@pytest.fixture(autouse=True)
def _own_caches(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.delenv("BASE_DATASETS_DIR", raising=False)


def parsed(spec, existing=()):
    return parse_dataset_args(spec, lambda path: path in existing)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("pystdlib", [("pystdlib", {}, {})]),
        (
            "data/c4-en-shuffled[train:1000_000,test:1000]",
            [("data/c4-en-shuffled", {"train": 1_000_000, "test": 1000}, {})],
        ),
        (
            " a/b[train:10] + c/d [ name:all , test:2 ]|e",
            [("a/b", {"train": 10}, {}), ("c/d", {"test": 2}, {"name": "all"}), ("e", {}, {})],
        ),
        ("wikitext[name:wikitext-103-v1]", [("wikitext", {}, {"name": "wikitext-103-v1"})]),
        ("x[revision:a+b|c]+y", [("x", {}, {"revision": "a+b|c"}), ("y", {}, {})]),
        ("x[]", [("x", {}, {})]),
        ("x[url:http://h:80/p]", [("x", {}, {"url": "http://h:80/p"})]),
    ],
)
def test_published_forms_are_read(spec, expected):
    assert parsed(spec) == [SourceSpec(*source) for source in expected]


def test_a_path_with_separators_is_whole_when_it_exists():
    existing = {"c++/docs", "a|b+c"}
    assert [s.path for s in parsed("c++/docs[train:5]+x", existing)] == ["c++/docs", "x"]
    assert [s.path for s in parsed("y+a|b+c|z", existing)] == ["y", "a|b+c", "z"]
    assert [s.path for s in parsed("a|b", existing)] == ["a", "b"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "has no name"),
        ("a++b", "has no name"),
        ("a+", "has no name"),
        ("a[train:1", "brackets"),
        ("a]b", "brackets"),
        ("a[train]", "'train' should be key:value"),
        ("a[train:many]", "train:many should be a whole number"),
        ("a[train:-5]", "must not be negative"),
        ("a[train:1,train:2]", "train is given twice"),
        ("a[train:1,]", "'' should be key:value"),
    ],
)
def test_malformed_specs_are_quoted(spec, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        parsed(spec)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("limits", "train", "test"),
    [
        ({"train": 6, "test": 3}, range(3, 9), range(3)),
        ({"train": 100, "test": 3}, range(3, 40), range(3)),
        ({"test": 4}, range(4, 40), range(4)),
        ({"train": 5, "test": 0}, range(5), None),
    ],
)
def test_one_split_gives_test_rows_first_and_never_shares_a_row(
    tmp_path, streaming, limits, train, test
):
    path = write_jsonl(tmp_path / "d.jsonl", numbered(40))
    parts = Source(SourceSpec(str(path), limits, {})).parts(streaming=streaming)
    assert texts(parts["train"]) == [f"row {i}" for i in train]
    if test is None:
        assert "test" not in parts
    else:
        assert texts(parts["test"]) == [f"row {i}" for i in test]


def test_without_a_test_limit_every_twentieth_row_is_kept_for_it(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", numbered(45))
    parts = Source(SourceSpec(str(path), {}, {})).parts()
    assert texts(parts["test"]) == ["row 19", "row 39"]
    assert texts(parts["train"]) == [f"row {i}" for i in range(45) if i not in (19, 39)]
    assert (parts["train"].size, parts["test"].size) == (43, 2)
    assert [row["text"] for row in parts["train"].open(18)] == texts(parts["train"])[18:]
    assert "test" not in Source(SourceSpec(str(path), {}, {})).parts(streaming=True)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("start", [0, 2, 5, 9])
def test_a_part_can_be_entered_anywhere(tmp_path, streaming, start):
    path = write_jsonl(tmp_path / "d.jsonl", numbered(20))
    part = Source(SourceSpec(str(path), {"train": 7, "test": 2}, {})).parts(streaming=streaming)[
        "train"
    ]
    assert [row["text"] for row in part.open(start)] == [f"row {i}" for i in range(2 + start, 9)]


def test_files_named_after_splits_are_those_splits(tmp_path):
    write_jsonl(tmp_path / "d/train-00001.jsonl", numbered(3, "a"))
    write_jsonl(tmp_path / "d/train-00002.jsonl", numbered(2, "b"))
    write_jsonl(tmp_path / "d/validation/x.jsonl", numbered(4, "c"))
    parts = Source(SourceSpec(str(tmp_path / "d"), {"validation": 2}, {})).parts()
    assert texts(parts["train"]) == ["a 0", "a 1", "a 2", "b 0", "b 1"]
    assert texts(parts["test"]) == ["c 0", "c 1"]


def saved(tmp_path, splits):
    from datasets import Dataset, DatasetDict

    whole = {name: Dataset.from_list(rows) for name, rows in splits.items()}
    target = tmp_path / "saved"
    (DatasetDict(whole) if len(whole) > 1 else whole["train"]).save_to_disk(str(target))
    return target


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("names", [["train", "test"], ["train"]])
def test_saved_folders_are_read_with_and_without_splits(tmp_path, names, streaming):
    target = saved(tmp_path, {name: numbered(30, name) for name in names})
    source = Source(SourceSpec(str(target), {"train": 4, "test": 2}, {}), preprocessed=True)
    parts = source.parts(streaming=streaming)
    first = 0 if len(names) == 2 else 2
    assert texts(parts["train"]) == [f"train {i}" for i in range(first, first + 4)]
    assert texts(parts["test"]) == [f"{names[-1]} {i}" for i in range(2)]


def test_csv_parquet_txt_and_compressed_files_are_read(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = numbered(3)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.csv").write_text("text\nrow 0\nrow 1\nrow 2\n")
    (tmp_path / "a.tsv").write_text("text\tn\nrow 0\t1\nrow 1\t2\nrow 2\t3\n")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(lines.encode()))
    names = ("a.csv", "a.tsv", "a.json", "a.parquet", "a.jsonl.gz", "a.jsonl.xz")
    for name in names:
        source = Source(SourceSpec(str(tmp_path / name), {"test": 0}, {}))
        assert texts(source.parts()["train"]) == ["row 0", "row 1", "row 2"], name


def test_a_text_file_is_one_document_unless_asked_otherwise(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("one.txt", "two.txt"):
        (folder / name).write_text(f"{name} first\n\nsecond\n")
    source = Source(SourceSpec(str(folder), {"test": 0}, {}))
    assert texts(source.parts()["train"]) == [
        f"{n} first\n\nsecond\n" for n in ("one.txt", "two.txt")
    ]
    lines = Source(SourceSpec(str(folder), {"test": 0}, {"sample_by": "line"}))
    assert len(texts(lines.parts()["train"])) == 6


def test_relative_paths_are_found_below_the_base_folder(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "base/sub/d.jsonl", numbered(3))
    monkeypatch.setenv("BASE_DATASETS_DIR", str(tmp_path / "base"))
    assert Source(SourceSpec("sub/d.jsonl", {}, {})).kind == "files"
    assert parse_dataset_args("sub/d.jsonl[train:2]")[0].path == "sub/d.jsonl"


def test_the_fingerprint_follows_the_content(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", numbered(3))
    source = Source(SourceSpec(str(path), {}, {}))
    before = source.fingerprint()
    assert Source(SourceSpec(str(path), {}, {})).fingerprint() == before
    write_jsonl(path, numbered(4))
    assert source.fingerprint() != before
    assert source.fingerprint() == source.fingerprint()


def test_missing_and_wrong_sources_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jsonl").write_text('{"text": 1\n')
    write_jsonl(tmp_path / "mixed/a.jsonl", numbered(2))
    (tmp_path / "mixed/b.csv").write_text("text\nx\n")
    good = str(write_jsonl(tmp_path / "good.jsonl", numbered(2)))
    for path, message in (
        ("./nowhere.jsonl", "no such file or folder"),
        (str(tmp_path / "empty"), "no file of a known type"),
    ):
        with pytest.raises(UserError, match=message):
            Source(SourceSpec(path, {}, {}))
    for path, limits, message in (
        (tmp_path / "bad.jsonl", {}, "could not be read"),
        (tmp_path / "mixed", {}, "mixes csv and json"),
        (good, {"trian": 5}, "no split 'trian', only train; did you mean 'train'"),
        (good, {"test": 2}, "no training rows"),
    ):
        with pytest.raises(UserError, match=message):
            Source(SourceSpec(str(path), limits, {})).parts()
    with pytest.raises(UserError, match="load_preprocessed_data"):
        Source(SourceSpec(good, {}, {}), preprocessed=True)
    with pytest.raises(UserError, match="pystdlib has no option 'lang'"):
        Source(SourceSpec("pystdlib", {}, {"lang": "en"}))


def test_a_hub_name_that_cannot_be_had_is_one_clear_error(monkeypatch):
    import datasets

    def offline(*_, **__):
        raise ConnectionError("Couldn't reach 'a/b' on the Hub\n(offline)")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match="'a/b' is no local file or folder.*Couldn't reach"):
        Source(SourceSpec("a/b", {}, {})).parts()


def test_hub_options_and_streaming_reach_the_loader(monkeypatch):
    import datasets

    def loader(path, streaming, **options):
        assert (path, streaming, options) == ("a/b", False, {"name": "all"})
        return datasets.DatasetDict({"train_sft": datasets.Dataset.from_list(numbered(3))})

    monkeypatch.setattr(datasets, "load_dataset", loader)
    source = Source(SourceSpec("a/b", {"train": 2, "test": 0}, {"name": "all"}))
    assert texts(source.parts()["train"]) == ["row 0", "row 1"]
    assert source.fingerprint()


@pytest.mark.parametrize(
    ("columns", "kind", "expected"),
    [
        (("text", "url"), "auto", "text"),
        (("input_ids", "text"), "auto", "ids"),
        (("messages",), "auto", "messages"),
        (("conversations", "id"), "sft", "conversations"),
        (("instruction", "input", "output", "text"), "sft", "alpaca"),
        (("instruction", "input", "output", "text"), "auto", "text"),
        (("prompt", "completion"), "auto", "pairs"),
    ],
)
def test_columns_decide_the_format(columns, kind, expected):
    assert format_of(columns, "text", kind, "s") == expected


def test_unknown_columns_are_listed_with_the_nearest():
    with pytest.raises(UserError, match="columns contents, url.*did you mean 'contents'"):
        format_of(("contents", "url"), "content", "auto", "s")
    with pytest.raises(UserError, match="expected text_field='text' or input_ids"):
        format_of(("messages",), "text", "pretrain", "s")


def test_every_chat_format_gives_the_same_messages():
    expected = [{"role": "user", "content": "q\n\nx"}, {"role": "assistant", "content": "a"}]
    rows = {
        "alpaca": {"instruction": "q", "input": "x", "output": "a"},
        "pairs": {"prompt": "q\n\nx", "response": "a"},
        "messages": {"messages": expected},
        "conversations": {
            "conversations": [{"from": "human", "value": "q\n\nx"}, {"from": "gpt", "value": "a"}]
        },
    }
    for form, row in rows.items():
        assert messages_of(row, form) == expected
    assert messages_of({"prompt": expected[:1], "completion": expected[1:]}, "pairs") == expected
    plain = messages_of({"instruction": "q", "input": "", "output": "a"}, "alpaca")
    assert plain[0]["content"] == "q"
    with pytest.raises(UserError, match="from='bot'"):
        messages_of({"conversations": [{"from": "bot", "value": ""}]}, "conversations")


def test_sources_are_not_opened_to_be_named():
    assert Source(SourceSpec("owner/name", {}, {})).kind == "hub"
    assert Source(SourceSpec("pystdlib", {}, {})).kind == "pystdlib"
