"""`tokenizer` and `prepare`: what they print is what they wrote."""

import json
import re

import pytest

from jaxllada.apps import prepare, tokenizer
from jaxllada.common.config.load import load_config
from jaxllada.common.data.row_options import RowOptions
from jaxllada.common.data.sources import load_rows
from jaxllada.common.errors import UserError
from jaxllada.common.tokenizer import Tokenizer

TEXTS = [f"Text {i}: " + "some more words " * (1 + i % 5) for i in range(80)]
DIALOGUE = [
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "two?"},
    {"role": "assistant", "content": "2"},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def _own_caches(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.fixture
def folder(tmp_path):
    text = write(tmp_path / "text.jsonl", [{"text": t} for t in TEXTS])
    return train(text, tmp_path / "tok")


def train(text, target):
    argv = ["--dataset_args", text, "--vocab_size", "300", "--output_dir", str(target)]
    assert not tokenizer.run(load_config(tokenizer.Config, argv))
    return str(target)


def run_prepare(tmp_path, *argv):
    cache = ["--cache_dir", str(tmp_path / "cache")]
    return prepare.run(load_config(prepare.Config, [*argv, *cache]))


def test_the_tokenizer_verb_reports_what_it_wrote(tmp_path, capsys):
    text = write(tmp_path / "text.jsonl", [{"text": t} for t in TEXTS])
    folder = train(text, tmp_path / "tok")
    written = Tokenizer.from_folder(folder)
    out = capsys.readouterr().out
    assert f"{written.vocab_size:,} ids; mask {written.mask_id}" in out
    held_out = TEXTS[19::20]
    tokens = sum(len(written.encode(t)) for t in held_out)
    ratio = sum(len(t.encode()) for t in held_out) / tokens
    assert f"bytes/token {ratio:.2f} on validation text" in out
    config = load_config(tokenizer.Config, ["--output_dir", folder])
    with pytest.raises(UserError, match="has a tokenizer already"):
        tokenizer.run(config)


def test_a_tokenizer_can_be_learnt_from_conversations(tmp_path):
    path = write(tmp_path / "c.jsonl", [{"messages": DIALOGUE}] * 30)
    target = str(tmp_path / "t")
    tokenizer.run(load_config(tokenizer.Config, ["dataset_args=" + path, "output_dir=" + target]))
    assert len(Tokenizer.from_folder(target).encode("two")) == 1


def test_prepared_text_reads_back_as_the_same_rows(tmp_path, folder, capsys):
    text = str(tmp_path / "text.jsonl")
    target = str(tmp_path / "out")
    argv = ["dataset_args=" + text, "tokenizer_name_or_path=" + folder, "max_length=32"]
    run_prepare(tmp_path, *argv, "output_dir=" + target)
    out = capsys.readouterr().out
    known = Tokenizer.from_folder(target)
    settings = dict(max_length=32, cache_dir=str(tmp_path / "cache"), progress=False)
    first = load_rows(text, known, RowOptions(**settings))
    again = load_rows(target, known, RowOptions(**settings, load_preprocessed_data=True))
    for split in ("train", "test"):
        rows = [first[split][i].tokens.tolist() for i in range(len(first[split]))]
        assert [again[split][i].tokens.tolist() for i in range(len(again[split]))] == rows
        assert f"{split}: {len(rows):,} rows" in out
    assert len(re.findall(r"^--- row", out, re.M)) == 3
    assert known.decode(first["train"][0].tokens) in out
    assert "hf" not in [path.name for path in (tmp_path / "out").iterdir()]


def test_prepared_dialogues_are_written_as_pairs(tmp_path, folder, capsys):
    path = write(tmp_path / "c.jsonl", [{"messages": DIALOGUE}] * 3)
    target = str(tmp_path / "out")
    argv = ["dataset_args=" + path + "[test:0]", "tokenizer_name_or_path=" + folder]
    run_prepare(tmp_path, *argv, "output_dir=" + target)
    out = capsys.readouterr().out
    assert "3 rows" in out
    assert "6 answers" in out
    assert "[answer] 2<|eot_id|>" in out
    known = Tokenizer.from_folder(target)
    settings = dict(max_length=100, cache_dir=str(tmp_path / "cache"), progress=False)
    spec = target + "[test:0]"
    rows = load_rows(spec, known, RowOptions(**settings, load_preprocessed_data=True))["train"]
    answers = [known.decode(rows[i].tokens[rows[i].maskable]) for i in range(len(rows))]
    assert answers == ["1<|eot_id|>", "2<|eot_id|>"] * 3


def test_what_was_left_out_is_told_with_its_reason(tmp_path, folder, capsys):
    rows = [{"prompt": f"number {i}", "response": "more words"} for i in range(8)]
    rows[3]["response"] = ""
    path = write(tmp_path / "p.jsonl", rows)
    other = write(tmp_path / "c.jsonl", [{"messages": DIALOGUE}] * 2)
    argv = [f"dataset_args={path}[test:0] + {other}[test:0]", "tokenizer_name_or_path=" + folder]
    run_prepare(tmp_path, *argv, f"output_dir={tmp_path / 'out'}", "num_proc=2")
    out = capsys.readouterr().out
    assert "p.jsonl train: 7 rows" in out
    assert "left out 1 of 8 rows" in out
    assert "1 with an empty answer" in out
    assert "p.jsonl:4: the answer is empty" in out
    assert "c.jsonl train: 2 rows" in out
    import datasets

    written = datasets.load_from_disk(str(tmp_path / "out"))
    assert written.num_rows == {"train": 7 + 4}
    assert set(written.column_names["train"]) == {"input_ids", "labels", "prompt_len"}
    with pytest.raises(UserError, match=r"p.jsonl:4: the answer is empty"):
        run_prepare(tmp_path, *argv, "on_bad_row=error")


def test_samples_are_coloured_on_a_terminal(tmp_path, folder, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    path = write(tmp_path / "p.jsonl", [{"prompt": "more?", "response": "some"}] * 3)
    argv = [f"dataset_args={path}[test:0]", "tokenizer_name_or_path=" + folder]
    run_prepare(tmp_path, *argv)
    out = capsys.readouterr().out
    assert "\x1b[1;32msome<|eot_id|>\x1b[0m" in out
    assert "\x1b[2m<|startoftext|>" in out


def test_a_tokenizer_of_a_base_model_gets_the_tokens_of_the_template(tmp_path, folder, capsys):
    full = Tokenizer.from_folder(folder)
    data = json.loads(full.core.to_str())
    names = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] not in names]
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        known = json.loads((tmp_path / "tok" / file).read_text())
        text = json.dumps(data if file == "tokenizer.json" else known)
        (tmp_path / "base").mkdir(exist_ok=True)
        (tmp_path / "base" / file).write_text(text)
    path = write(tmp_path / "p.jsonl", [{"prompt": "more?", "response": "some"}] * 3)
    argv = [f"dataset_args={path}[test:0]", f"tokenizer_name_or_path={tmp_path / 'base'}"]
    run_prepare(tmp_path, *argv, f"output_dir={tmp_path / 'out'}")
    assert "adding <|start_header_id|>" in capsys.readouterr().err
    assert Tokenizer.from_folder(tmp_path / "out").eot_id is not None


def test_an_output_folder_is_only_replaced_on_request(tmp_path, folder):
    text = str(tmp_path / "text.jsonl")
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text("keep")
    argv = ["dataset_args=" + text, "tokenizer_name_or_path=" + folder, f"output_dir={target}"]
    argv.append("max_length=32")
    with pytest.raises(UserError, match="output_dir=.*exists"):
        run_prepare(tmp_path, *argv)
    assert (target / "mine").exists()
    run_prepare(tmp_path, *argv, "overwrite_output_dir=true")
    assert not (target / "mine").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["tokenizer_name_or_path=t"], "dataset_args is missing"),
        (["dataset_args=d"], "tokenizer_name_or_path is missing"),
        (["dataset_args=d", "tokenizer_name_or_path=t", "max_length=0"], "max_length=0"),
        (["dataset_args=d", "tokenizer_name_or_path=./nowhere"], "nowhere.*no tokenizer.json"),
    ],
)
def test_missing_settings_are_named(tmp_path, argv, message):
    with pytest.raises(UserError, match=message):
        run_prepare(tmp_path, *argv)
