"""A folder as somebody who fine-tunes has it: a small model with its tokenizer, and Alpaca rows."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.opening import read_config
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


def make_tutorial(folder: Path, save: Callable[[ModelConfig, Path], object]) -> None:
    """Writes what the tutorial's two YAML files name, small: models, and rows of save_to_disk.

    `save` writes random weights of a config into a folder.
    """
    from datasets import Dataset, DatasetDict

    for name in ("llada-8b", "llada-100M"):
        # As little as attention over the tutorial's 1024 tokens can be.
        shape = {"n_layers": 1, "n_heads": 2, "n_kv_heads": 1}
        make_model(folder / name, max_sequence_length=1024, **shape)
    save(read_config(folder / "llada-8b"), folder / "llada-8b")
    tokenizer = Tokenizer.from_folder(folder / "llada-8b")
    splits = {"train": [], "test": []}
    for i, row in enumerate(alpaca_rows(72)):
        question = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
        asked = [{"role": "user", "content": question}]
        prompt = tokenizer.chat(asked)
        ids = prompt + tokenizer.encode(f"{row['output']}<|eot_id|>")
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        found = {"input_ids": ids, "labels": labels, "prompt_len": len(prompt)}
        splits["test" if i % 9 == 0 else "train"].append(found)
    pairs = DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})
    pairs.save_to_disk(str(folder / "data" / "alpaca-zh-gpt"))
    ids = [token for row in splits["train"] for token in row["input_ids"]]
    row = {"input_ids": (ids * 3)[:1024], "labels": (ids * 3)[:1024]}
    text = DatasetDict({"train": Dataset.from_list([row] * 20), "test": Dataset.from_list([row])})
    text.save_to_disk(str(folder / "data" / "c4-en-shuffled"))
