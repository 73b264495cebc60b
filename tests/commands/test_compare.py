"""The verb compare: a pair of runs for every number of repetitions, their table and picture."""

import json
import random

import pytest

from jaxllada.__main__ import main
from jaxllada.common.comparison import compared, table
from jaxllada.common.config.load import load_file
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.opening import read_config
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.data.row_options import RowOptions
from jaxllada.common.data.sources import load_rows
from jaxllada.common.tokenizer import Tokenizer

pytestmark = pytest.mark.slow
WORDS = ["the", "mask", "hides", "one", "word", "and", "a", "model", "reads", "all", "others"]
SIDES = ("diffusion", "autoregressive")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    rng = random.Random(0)
    (folder / "text").mkdir()
    for name, count in (("train", 120), ("test", 20)):
        lines = [json.dumps({"text": " ".join(rng.choices(WORDS, k=20))}) for _ in range(count)]
        (folder / "text" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    Tokenizer.train([" ".join(WORDS)], 262, folder / "tokenizer")
    (folder / "model").mkdir()
    values = {
        "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "n_layers": 1, "mlp_hidden_size": 48,
        "vocab_size": 262, "embedding_size": 262, "block_type": "llama", "rope": True,
        "activation_type": "silu", "layer_norm_type": "rms", "attention_dropout": 0.0,
        "residual_dropout": 0.0, "embedding_dropout": 0.0, "weight_tying": False,
        "max_sequence_length": 64,
    }  # fmt: skip
    tokenizer = Tokenizer.from_folder(folder / "tokenizer")
    ids = {"mask_token_id": tokenizer.mask_id, "eos_token_id": tokenizer.eos_id}
    ids["pad_token_id"] = tokenizer.pad_id
    ModelConfig.from_dict({**values, **ids}).save(folder / "model")
    return folder


def arguments(home, **changes):
    values = {
        "model_name_or_path": home / "model", "tokenizer_name_or_path": home / "tokenizer",
        "dataset_args": home / "text", "output_dir": home / "out", "max_length": 16,
        "max_steps": 6, "per_device_train_batch_size": 4, "repeats": "3", "save_steps": 3,
        "eval_steps": 3, "logging_steps": 2, "random_length_ratio": 0, "learning_rate": 1e-2,
        "compile_cache_dir": "none",
    }  # fmt: skip
    return [f"{key}={value}" for key, value in (values | changes).items()]


@pytest.fixture(scope="module")
def output(home):
    assert main(["compare", *arguments(home)]) == 0
    return home / "out"


def test_every_run_is_a_run_of_pretrain_on_its_share_of_the_data(output, home):
    for side in SIDES:
        folder = output / f"{side}-3x"
        assert load_file(TrainConfig, folder / "config.yaml").repeat_data == 3
        assert read_config(folder).is_causal == (side == "autoregressive")
        assert (folder / "checkpoints" / "6").is_dir()
    twin, other = (read_config(output / f"{side}-3x") for side in reversed(SIDES))
    for key in ("d_model", "n_layers", "n_heads", "kv_heads", "ffn_width", "rows", "eos_token_id"):
        assert getattr(twin, key) == getattr(other, key), key


def test_numbers_are_those_of_the_runs_in_nats_per_byte(output, home):
    found = json.loads((output / "compare.json").read_text())
    plans = [(side, 3) for side in SIDES]
    assert [(run["side"], run["repeats"]) for run in found["runs"]] == plans
    settings = load_file(TrainConfig, output / "diffusion-3x" / "config.yaml")
    tokenizer = Tokenizer.from_folder(home / "tokenizer")
    rows = load_rows(settings.dataset_args, tokenizer, RowOptions.of(settings))["test"]
    size = sum(
        len(tokenizer.decode(rows[i].tokens, skip_special_tokens=True).encode())
        for i in range(len(rows))
    )
    tokens = sum(len(rows[i].tokens) for i in range(len(rows)))
    for run in found["runs"]:
        assert run["steps_measured"] == [0, 3, 6]
        assert run["tokens"] == 6 * 4 * 16
        assert run["distinct_tokens"] * run["repeats"] == run["tokens"]
        assert run["final"] == pytest.approx(run["final_per_token"] * tokens / size)
        assert run["best"] == min(run["curve"])
        assert run["final"] < run["curve"][0]
    text = (output / "compare.md").read_text()
    assert text.strip() == table(found)
    assert text.count("\n|") == 1 + len(plans)
    assert (output / "compare.png").read_bytes()[:4] == b"\x89PNG"


def test_a_comparison_goes_on_and_takes_further_repetitions(output, home, capsys):
    before = json.loads((output / "compare.json").read_text())["runs"]
    assert main(["compare", *arguments(home, repeats="3,6")]) == 0
    after = json.loads((output / "compare.json").read_text())["runs"]
    assert after[:2] == before
    assert [run["repeats"] for run in after[2:]] == [6, 6]
    assert "diffusion" in capsys.readouterr().out


def test_runs_that_are_missing_are_left_out(output):
    found = compared(output, [("diffusion", 3), ("diffusion", 99)])
    assert [run["repeats"] for run in found["runs"]] == [3]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"repeats": "4,1"}, "repeats"),
        ({"max_steps": -1}, "max_steps"),
        ({"repeat_data": 2}, "repeat_data"),
        ({"twin_name_or_path": "tiny"}, "twin_name_or_path=tiny"),
        ({"model_name_or_path": "qwen2-tiny"}, "model_name_or_path=qwen2-tiny"),
        ({"repeats": "1", "max_steps": 999}, "repeat_data=1"),
    ],
)
def test_wrong_settings_are_refused_by_name(home, tmp_path, capsys, changes, word):
    assert main(["compare", *arguments(home, output_dir=tmp_path / "x", **changes)]) == 2
    assert word in capsys.readouterr().err
