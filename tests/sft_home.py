"""A folder as somebody who fine-tunes has it: a small model with its tokenizer, and Alpaca rows."""

import dataclasses
import json
from pathlib import Path

from jaxllada.common.config.presets import PRESETS
from jaxllada.common.tokenizer import Tokenizer

COLOURS = ["red", "green", "blue", "white", "black", "grey", "pink", "brown"]


def alpaca_rows(count: int) -> list[dict[str, str]]:
    """Questions with answers of one to seven words that follow from them."""
    rows = []
    for i in range(count):
        colour, times = COLOURS[i % 8], 1 + (i // 8) % 7
        rows.append({
            "instruction": f"Say {colour} {times} times", "input": "" if i % 3 else "slowly",
            "output": " ".join([colour] * times),
        })  # fmt: skip
    return rows


def make_model(folder: Path, **changes: object) -> Path:
    """Writes a config.json without weights and the tokenizer that fits it."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [" ".join(row.values()) for row in alpaca_rows(60)]
    tokenizer = Tokenizer.train([*texts, "user assistant\n\n"], 320, folder)
    values = {
        "vocab_size": tokenizer.vocab_size, "embedding_size": tokenizer.vocab_size,
        "mask_token_id": tokenizer.mask_id, "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }  # fmt: skip
    dataclasses.replace(PRESETS["tiny"], **(values | changes)).save(folder)
    return folder


def make_home(folder: Path) -> Path:
    """Writes `model` and `alpaca.json`."""
    make_model(folder / "model")
    (folder / "alpaca.json").write_text(json.dumps(alpaca_rows(60)))
    return folder


def arguments(home: Path, output: Path, **changes: object) -> list[str]:
    """Settings of a run of seconds, as words of a command line."""
    values = {
        "model_name_or_path": home / "model", "dataset_args": home / "alpaca.json",
        "output_dir": output, "max_length": 64, "max_steps": 6, "per_device_train_batch_size": 4,
        "save_steps": 3, "eval_steps": 3, "logging_steps": 1, "sample_length": 8,
    }  # fmt: skip
    return [f"{key}={value}" for key, value in (values | changes).items()]
