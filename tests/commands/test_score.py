"""The verb `score` of both packages on a small model folder, run as a user runs it."""

import dataclasses
import json

import jax
import pytest

import npu_backend.__main__ as npu
from jaxllada import convert
from jaxllada.__main__ import main
from jaxllada.common.config.presets import PRESETS
from jaxllada.common.tokenizer import Tokenizer
from jaxllada.models.mask_predictor import MaskPredictor

ROWS = [
    {"prompt": "the cat sat on ", "options": ["the mat", "the dog", "a log"], "answer": 0},
    {"prompt": "the dog", "options": [" sat", " cat"], "answer": " cat"},
    {"prompt": "and", "options": [" the dog", " the"], "answer": 1},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    texts = ["the cat sat on the mat and the dog sat on the log"] * 20
    tokenizer = Tokenizer.train(texts, 280, path)
    rows = tokenizer.vocab_size
    config = dataclasses.replace(
        PRESETS["tiny"], vocab_size=rows, embedding_size=rows, mask_token_id=tokenizer.mask_id,
        eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    convert.save(MaskPredictor(config, rngs=jax.random.key(0)), path)
    return path


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def scores(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [option["value"] for line in lines for option in line["options"]], lines


def test_both_packages_print_accuracy_and_write_the_same_values(folder, tmp_path, capsys):
    questions = write(tmp_path / "questions.jsonl", ROWS)
    given = ["score", str(folder), "--questions_file", str(questions), "--mc_num", "1",
             "--batch_size", "1", "--output"]  # fmt: skip
    assert main([*given, str(tmp_path / "a.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert npu.main([*given, str(tmp_path / "b.jsonl"), "--device", "cpu"]) == 0
    theirs = capsys.readouterr().out
    ours, lines = scores(tmp_path / "a.jsonl")
    others, _ = scores(tmp_path / "b.jsonl")
    assert others == pytest.approx(ours, rel=1e-5)
    right = sum(line["best"] == answer for line, answer in zip(lines, (0, 1, 1), strict=True))
    assert f"accuracy           {right / 3:.4f} +- " in printed
    assert printed.splitlines()[:2] == theirs.splitlines()[:2]
    # One mask of several tokens has no standard error: no NaN in JSON.
    assert any(option["stderr"] is None for line in lines for option in line["options"])


def test_questions_without_answers_are_scored_with_errors(folder, tmp_path, capsys):
    rows = [{key: row[key] for key in ("prompt", "options")} for row in ROWS]
    questions = write(tmp_path / "questions.jsonl", rows)
    assert main(["score", str(folder), "--questions_file", str(questions), "--limit", "1",
                 "--method", "exact"]) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert out.count("+- 0.000") == 3
    assert "accuracy" not in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "questions.jsonl is empty"),
        ('{"prompt": "a", "options": ["b"]}\n{"prompt": ', "questions.jsonl:2 is not JSON"),
        ('{"options": ["b"]}', "questions.jsonl:1: expected an object with prompt"),
        ('{"prompt": "a", "options": []}', "options=[] must be a list of texts"),
        ('{"prompt": "a", "options": ["b"], "answer": 1}', "answer=1 must be one of the 1 opt"),
    ],
)
def test_wrong_lines_are_named(folder, tmp_path, capsys, text, message):
    path = tmp_path / "questions.jsonl"
    path.write_text(text)
    assert main(["score", str(folder), "--questions_file", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_wrong_options_are_told_before_the_model_is_read(capsys):
    assert main(["score", "nowhere"]) == 2
    assert "questions_file is not given" in capsys.readouterr().err
    assert main(["score", "nowhere", "--questions_file", "x", "--stop_level", "2"]) == 2
    assert "stop_level=2" in capsys.readouterr().err
