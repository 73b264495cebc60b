"""Training settings: names of the tutorial, one line for what cannot work."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from jaxllada.common.config.fields import keys_of
from jaxllada.common.config.train import TrainConfig, interval
from jaxllada.common.errors import UserError

PRETRAIN = """
model_name_or_path: llada-100M
dataset_args: data/c4-en-shuffled[train:1000_000,test:1000]
text_field: text
streaming: false
num_proc: 8
drop_tail: true
max_length: 1024
load_preprocessed_data: true
insert_eos: true
random_length_ratio: 0.01
output_dir: output/llada-pt-c4-500Mtokens-epoch-1
run_name: llada-pt-c4-500Mtokens-epoch-1
learning_rate: 3.0e-4
warmup_steps: 2000
max_steps: 10
per_device_train_batch_size: 2
per_device_eval_batch_size: 2
gradient_accumulation_steps: 8
logging_steps: 20
eval_strategy: steps
eval_steps: 200
save_steps: 1000
save_total_limit: 2
"""

SFT = """
model_name_or_path: llada-8b
lora: true
target_modules: all-linear
r: 32
lora_alpha: 64
lora_dropout: 0.05
dataset_args: data/alpaca-zh-gpt[train:2000,test:200]
num_proc: 8
max_length: 1024
load_preprocessed_data: true
output_dir: output/llada-gpu1-epoch-test
report_to: swanlab
run_name: llada-alpaca-zh-epoch-test
learning_rate: 3.0e-4
warmup_ratio: 0.1
max_steps: 10
per_device_train_batch_size: 2
per_device_eval_batch_size: 2
gradient_accumulation_steps: 8
logging_steps: 2
eval_strategy: steps
eval_steps: 200
save_steps: 1000
save_total_limit: 2
"""


@pytest.mark.parametrize("text", [PRETRAIN, SFT], ids=["pretrain", "sft"])
def test_the_files_of_the_tutorial_load_unchanged(text):
    values = yaml.safe_load(text)
    config = TrainConfig(**values)
    assert {key: getattr(config, key) for key in values} == values


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs" / "pretrain").glob("*.yaml")), ids=str
)
def test_every_shipped_config_loads(path):
    TrainConfig(**yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_length", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("per_device_train_batch_size", 0),
        ("gradient_accumulation_steps", -1),
        ("learning_rate", -1e-4),
        ("learning_rate", float("nan")),
        ("random_length_ratio", 1.5),
        ("adam_beta2", 1.0),
        ("ema_decay", 1.0),
        ("time_epsilon", 0.0),
        ("rollback_lr_factor", 0.0),
        ("max_steps", 0),
        ("num_train_epochs", 0),
        ("mesh_data", 0),
        ("mesh_fsdp", -1),
        ("eval_steps", 0),
        ("eval_steps", 2.5),
        ("save_steps", 1.5),
        ("output_dir", " "),
        ("profile", "13:10"),
        ("profile", "10"),
        ("lr_segments", "10: 1e-4"),
        ("coordinator_address", "localhost:1"),
    ],
)
def test_a_value_that_cannot_work_is_named_with_its_key(key, value):
    with pytest.raises(UserError, match=key):
        TrainConfig(**{key: value})


@pytest.mark.parametrize(
    "values",
    [
        {"warmup_ratio": 0.1, "warmup_steps": 5},
        {"lr_scheduler_type": "segments"},
        {"gradient_checkpointing": True, "remat": "dots"},
        {"streaming": True, "eval_strategy": "epoch"},
    ],
)
def test_settings_that_would_be_ignored_are_refused(values):
    with pytest.raises(UserError):
        TrainConfig(**values)


def test_every_setting_has_a_help_text():
    keys = keys_of(TrainConfig)
    assert keys.keys() == {field.name for field in dataclasses.fields(TrainConfig)}
    assert [name for name, key in keys.items() if not key.help] == []


def test_intervals_below_one_are_shares_of_the_run():
    assert interval(0.1, 95) == 10
    assert interval(200, 95) == 200
    assert interval(0, 95) == 0
    assert interval(1, 95) == 1


def test_steps_come_from_max_steps_or_from_epochs():
    assert TrainConfig(max_steps=7).total_steps(100) == 7
    assert TrainConfig(num_train_epochs=1.5).total_steps(11) == 17
    with pytest.raises(UserError, match="max_steps"):
        TrainConfig().total_steps(None)


def test_names_of_trackers_and_policies():
    assert TrainConfig(report_to="wandb, tensorboard").trackers == ("wandb", "tensorboard")
    assert TrainConfig(report_to="none").trackers == ()
    assert TrainConfig(gradient_checkpointing=True).remat_policy == "full"
    assert TrainConfig(profile="10:13").profile_window == (10, 13)
