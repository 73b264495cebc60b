"""Sampling settings by name, and how keys given beside them win."""

from dataclasses import fields

import pytest

from jaxllada.__main__ import main
from jaxllada.apps.sampling_keys import SamplingKeys
from jaxllada.common.config.fields import keys_of
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.config.sampling_presets import FAMILIES, HOME, preset_names, sampling_preset
from jaxllada.common.errors import UserError


@pytest.mark.parametrize("name", sorted(set(preset_names().values())))
def test_every_preset_can_be_run(name):
    config = SamplingKeys(preset=name).sampling(room=2048)
    assert config.gen_length == sampling_preset(name)["gen_length"]


def test_every_file_of_presets_is_a_family():
    assert sorted(path.stem for path in HOME.glob("*.yaml")) == sorted(FAMILIES)


def test_published_settings_are_those_of_the_authors_table():
    """EVAL.md of ML-GSAI/LLaDA, typed off a second time."""
    table = {
        "gsm8k": (256, 8, False, False),
        "math": (512, 64, False, False),
        "gsm8k-pure": (512, 512, False, True),
        "gpqa": (64, 64, False, True),
        "humaneval": (512, 512, True, False),
        "mbpp": (256, 256, False, True),
        "gsm8k@llada-1.5": (256, 16, False, True),
        "math@llada-1.5": (1024, 128, False, True),
        "gpqa@llada-1.5": (256, 16, False, False),
        "mbpp@llada-1.5": (512, 32, False, True),
        "bbh": (1024, 1024, False, False),
    }
    for name, expected in table.items():
        config = SamplingConfig(**sampling_preset(name))
        found = (config.gen_length, config.block_length)
        assert (*found, config.logits_eos_inf, config.confidence_eos_eot_inf) == expected, name
        assert config.steps == config.gen_length, name


def test_a_task_alone_is_that_of_the_first_family():
    assert preset_names()["gsm8k"] == "gsm8k@llada-instruct"
    assert sampling_preset("gsm8k") == sampling_preset("gsm8k@llada-instruct")


def test_keys_beside_a_preset_win_also_with_the_default_of_the_sampler():
    keys = SamplingKeys(preset="gsm8k@llada-1.5", steps=128, confidence_eos_eot_inf=False)
    config = keys.sampling(room=2048)
    assert (config.steps, config.block_length, config.gen_length) == (128, 16, 256)
    assert not config.confidence_eos_eot_inf
    assert config.stop_at_eos, "the default of the verbs"
    assert SamplingKeys(preset="gsm8k", max_length=64).sampling(room=2048).gen_length == 64


def test_a_boost_of_the_end_of_thinking_takes_its_ids_from_the_tokenizer():
    class Spelling:
        eot_id = 7

        def encode(self, text):
            return [ord(letter) for letter in text]

    config = SamplingKeys(preset="gsm8k@illada-instruct").sampling(4096, Spelling())
    assert bytes(config.end_think_token_ids) == b"</think>"
    assert (config.eot_token_id, config.canvas, config.steps) == (7, "grow", 32)
    own = SamplingKeys(preset="gsm8k@illada-instruct", end_think_token_ids=(5,))
    assert own.sampling(4096, Spelling()).end_think_token_ids == (5,)
    assert SamplingKeys().sampling(4096, Spelling()).end_think_token_ids == ()


def test_every_key_of_the_sampler_can_be_given():
    known = {key.name for key in fields(SamplingKeys)}
    assert {key.name for key in fields(SamplingConfig)} - known == {"eot_token_id"}
    assert [k.name for k in keys_of(SamplingKeys).values() if k.default not in (None, "")] == []


def test_a_file_of_ones_own_is_a_preset(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("# fast\ngen_length: 64\nsteps: 32\ntemperature: 1e-1\n")
    assert sampling_preset(str(file)) == {"gen_length": 64, "steps": 32, "temperature": 0.1}
    file.write_text("gen_lenght: 64\n")
    with pytest.raises(UserError, match=r"unknown key 'gen_lenght' in .*mine.yaml line 1.*gen_le"):
        sampling_preset(str(file))
    file.write_text("steps: many\n")
    with pytest.raises(UserError, match=r"steps=many in .*mine.yaml line 1: expected int"):
        sampling_preset(str(file))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gsm9k", "did you mean 'gsm8k'"),
        ("gsm8k@llama", "choose from gsm8k@llada-instruct, gsm8k@llada-base"),
        ("nowhere.yaml", "no such file: nowhere.yaml"),
    ],
)
def test_an_unknown_preset_is_refused_with_what_is_near(name, message):
    with pytest.raises(UserError, match=message):
        SamplingKeys(preset=name)


def test_the_verb_lists_presets_and_writes_one_that_is_read_back(capsys, tmp_path):
    assert main(["presets"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in preset_names())
    assert main(["presets", "mbpp@llada-1.5"]) == 0
    file = tmp_path / "mine.yaml"
    file.write_text(capsys.readouterr().out)
    assert sampling_preset(str(file)) == sampling_preset("mbpp@llada-1.5")
