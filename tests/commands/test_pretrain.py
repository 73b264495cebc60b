"""The verbs pretrain and evaluate, from text files to a folder that other verbs can load."""

import dataclasses
import json
import random

import numpy as np
import pytest

from jaxllada.__main__ import main
from jaxllada.common.config.opening import read_config
from jaxllada.common.config.presets import PRESETS
from jaxllada.common.errors import UserError
from jaxllada.common.tokenizer import Tokenizer

WORDS = ["the", "mask", "hides", "one", "word", "and", "a", "model", "reads", "all", "others"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Text files, a tokenizer and a model config that fit each other."""
    folder = tmp_path_factory.mktemp("home")
    rng = random.Random(0)
    (folder / "text").mkdir()
    for name, count in (("train", 300), ("test", 30)):
        lines = [
            json.dumps({"text": " ".join(rng.choice(WORDS) for _ in range(20))})
            for _ in range(count)
        ]
        (folder / "text" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "model").mkdir()
    tokenizer = Tokenizer.train([" ".join(WORDS)], 262, folder / "tokenizer")
    dataclasses.replace(
        PRESETS["tiny"], vocab_size=tokenizer.vocab_size, embedding_size=tokenizer.vocab_size,
        mask_token_id=tokenizer.mask_id, eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    ).save(folder / "model")  # fmt: skip
    return folder


def arguments(home, output, **changes):
    values = {
        "model_name_or_path": home / "model", "tokenizer_name_or_path": home / "tokenizer",
        "dataset_args": home / "text", "output_dir": output, "max_length": 32, "max_steps": 6,
        "per_device_train_batch_size": 4, "save_steps": 3, "eval_steps": 3, "logging_steps": 2,
        "sample_length": 8, "random_length_ratio": 0, "compile_cache_dir": "none",
    }  # fmt: skip
    values |= changes
    return [f"{key}={value}" for key, value in values.items()]


@pytest.fixture(scope="module")
def run_folder(home):
    assert main(["pretrain", *arguments(home, home / "run")]) == 0
    return home / "run"


def test_a_run_leaves_all_that_it_promised(run_folder, home):
    names = {path.name for path in run_folder.iterdir()}
    assert names >= {"config.yaml", "config.json", "metrics.jsonl", "loss.png", "tokenizer.json"}
    assert {path.name for path in (run_folder / "checkpoints").iterdir()} == {"3", "6"}
    assert {path.name for path in (run_folder / "samples").iterdir()} == {
        "step-3.txt",
        "step-6.txt",
    }
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert {"uniform_bound", "unigram_bound"} <= rows[0].keys()
    assert [row["step"] for row in rows if "eval_bound" in row] == [0, 3, 6]
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 6]
    assert read_config(run_folder) == read_config(home / "model")


def test_evaluate_repeats_the_number_of_the_run(run_folder, capsys):
    assert main(["evaluate", str(run_folder), "--eval_mc", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "eval_bound" in row][-1]
    assert found["bound"] == pytest.approx(last["eval_bound"], rel=1e-6)
    assert found["unigram_bound"] == rows[0]["unigram_bound"]
    assert main(["evaluate", str(run_folder), "--eval_mc", "2"]) == 0
    told = capsys.readouterr().out
    assert "validation bound" in told
    assert "0.9-1.0" in told


def test_a_run_folder_is_a_model_to_start_from(run_folder, home, tmp_path):
    from jaxllada.restore import load_run_params

    output = tmp_path / "next"
    changes = {"model_name_or_path": run_folder, "tokenizer_name_or_path": "", "max_steps": 1,
               "learning_rate": 0, "sample_length": 0}  # fmt: skip
    assert main(["pretrain", *arguments(home, output, **changes)]) == 0
    before, after = load_run_params(run_folder)[0], load_run_params(output)[0]
    np.testing.assert_array_equal(after["wte"], before["wte"])


def test_the_saved_settings_repeat_the_run(run_folder, tmp_path):
    changes = [f"output_dir={tmp_path / 'again'}", "max_steps=2", "sample_length=0"]
    assert main(["pretrain", str(run_folder / "config.yaml"), *changes]) == 0


def test_streaming_trains_too(home, tmp_path):
    changes = {"streaming": True, "max_steps": 2, "sample_length": 0, "eval_strategy": "no"}
    assert main(["pretrain", *arguments(home, tmp_path / "run", **changes)]) == 0


def test_a_preset_takes_its_special_ids_from_the_tokenizer(home, tmp_path, capsys):
    from jaxllada.train.start import find_model, find_tokenizer, fit_preset

    origin = find_model("QuickStart")
    tokenizer = find_tokenizer(str(home / "tokenizer"), origin)
    config = fit_preset(origin, tokenizer)
    assert config.mask_token_id == tokenizer.mask_id
    assert "mask_token_id=" in capsys.readouterr().err


MISTAKES = [
    ({"dataset_args": ""}, "dataset_args: not set"),
    ({"lora": True}, "lora=true"),
    ({"model_name_or_path": "llada-101m"}, "did you mean 'llada-100m'"),
    ({"model_name_or_path": "tiny"}, "embedding_size=128"),
    ({"tokenizer_name_or_path": ""}, "tokenizer_name_or_path: there is none in"),
    ({"tokenizer_name_or_path": "nowhere"}, "nowhere"),
    ({"dataset_args": "nowhere"}, "nowhere"),
    ({"max_length": 65}, "max_length=65: the model's max_sequence_length is 64"),
    ({"mesh_fsdp": 2}, "mesh_fsdp=2"),
    ({"attn_implementation": "flash"}, "attention='flash'"),
    ({"remat": "some"}, "remat='some'"),
    ({"report_to": "wandbb"}, "report_to"),
    ({"lr_scheduler_type": "segments", "lr_segments": "5"}, "lr_segments='5'"),
    ({"lr_scheduler_type": "wsd", "warmup_steps": 6, "lr_decay_ratio": 0.9}, "do not fit"),
    ({"num_processes": 2}, "num_processes=2"),
]


@pytest.mark.parametrize(("changes", "told"), MISTAKES)
def test_a_mistake_costs_one_line_and_leaves_nothing(home, tmp_path, capsys, changes, told):
    output = tmp_path / "run"
    assert main(["pretrain", *arguments(home, output, **changes)]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert told in message
    assert not output.exists()


def test_a_tokenizer_of_another_model_is_refused(home, tmp_path, capsys):
    other = dataclasses.replace(read_config(home / "model"), mask_token_id=5)
    (tmp_path / "model").mkdir()
    other.save(tmp_path / "model")
    changes = {"model_name_or_path": tmp_path / "model"}
    assert main(["pretrain", *arguments(home, tmp_path / "run", **changes)]) == 2
    assert "mask_token_id=5" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_evaluate_needs_weights(home, capsys):
    assert main(["evaluate", str(home / "model")]) == 2
    assert "has no weights" in capsys.readouterr().err
    assert main(["evaluate"]) == 2
    assert "no model given" in capsys.readouterr().err


def test_a_folder_of_base_models_is_searched(home, monkeypatch):
    from jaxllada.train.start import find_model

    monkeypatch.setenv("BASE_MODELS_DIR", str(home))
    assert find_model("model").folder == home / "model"
    with pytest.raises(UserError, match="neither a folder"):
        find_model("models")
