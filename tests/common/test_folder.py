"""What an exported folder holds beside its weights: each file as it was, or made from the model."""

import json
import re

import numpy as np
import pytest
import yaml

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.opening import read_config
from jaxllada.common.config.presets import preset
from jaxllada.common.errors import UserError
from jaxllada.common.tokenizer import Tokenizer
from jaxllada.common.weights.card import model_card
from jaxllada.common.weights.card_run import checkpoint_of
from jaxllada.common.weights.folder import AUTO_MAP, REMOTE, complete_folder, config_json
from jaxllada.common.weights.layouts import LLADA, LLAMA
from jaxllada.common.weights.side_files import copy_side_files
from tests.jax.golden import DENSE

GOLDEN = read_config(DENSE)
TINY = preset("tiny")


@pytest.fixture
def source(tmp_path):
    """A folder with a tokenizer, and odd bytes that only a copy keeps."""
    folder = tmp_path / "source"
    tokenizer = Tokenizer.train(["one two three"] * 5, 280)
    tokenizer.save(folder)
    (folder / "chat_template.jinja").write_bytes(b"{{ bos_token }}\r\n{# \xc3\xa9 #}")
    (folder / "added_tokens.json").write_bytes(b'{"x" :1}\n\n')
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_bytes(b"{{ 1 }}")
    return folder


def complete(tmp_path, config=GOLDEN, **options):
    folder = tmp_path / "target"
    folder.mkdir()
    complete_folder(folder, config=config, **options)
    return folder


def metadata(text: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])


def test_tokenizer_files_are_copied_byte_for_byte(source, tmp_path):
    (source / "generation_config.json").write_bytes(b'{"eos_token_id": 7,  "x": 1}')
    folder = complete(tmp_path, source_folder=source)
    for file in source.rglob("*"):
        if file.is_file():
            assert (folder / file.relative_to(source)).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        (
            "llada",
            ["configuration_llada.py", "custom_generate", "generation_llada.py",
             "modeling_llada.py"],
        ),
        ("llama", ["custom_generate"]),
    ],
)  # fmt: skip
def test_the_code_that_runs_the_layout_comes_along(layout, names, tmp_path):
    folder = complete(tmp_path, layout=layout)
    expected = ["README.md", "config.json", *names, "generation_config.json"]
    assert sorted(file.name for file in folder.iterdir()) == sorted(expected)
    sampler = (REMOTE / "generation_llada.py").read_bytes()
    assert (folder / "custom_generate" / "generate.py").read_bytes() == sampler


def test_a_released_config_is_written_as_it_was_read(tmp_path):
    folder = complete(tmp_path)
    assert json.loads((folder / "config.json").read_text()) == json.loads(
        (DENSE / "config.json").read_text()
    )


def test_a_new_config_says_where_its_code_is():
    assert config_json(TINY, LLADA)["auto_map"] == AUTO_MAP
    assert ModelConfig.from_dict(config_json(TINY, LLADA)) == TINY
    assert "auto_map" not in config_json(TINY, LLAMA)


def test_a_config_without_a_model_type_gets_one():
    values = json.loads((DENSE / "config.json").read_text())
    del values["model_type"]
    assert config_json(ModelConfig.from_dict(values), LLADA)["model_type"] == "llada"


def test_code_on_the_hub_is_replaced_by_ours(capsys):
    values = json.loads((DENSE / "config.json").read_text())
    values["auto_map"] = {"AutoModel": "GSAI-ML/LLaDA-8B-Base--modeling_llada.LLaDAModelLM"}
    assert config_json(ModelConfig.from_dict(values), LLADA)["auto_map"] == AUTO_MAP
    assert "auto_map: replaced" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_a_stored_type_that_is_named_stays_true(key):
    values = json.loads((DENSE / "config.json").read_text()) | {key: "bfloat16"}
    config = ModelConfig.from_dict(values)
    assert config_json(config, LLADA, np.dtype(np.float32))[key] == "float32"
    assert config_json(config, LLADA)[key] == "bfloat16"


def test_generation_config_is_made_where_there_is_none(source, tmp_path):
    tokenizer = Tokenizer.from_folder(source)
    folder = complete(tmp_path, source_folder=source)
    assert json.loads((folder / "generation_config.json").read_text()) == {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": GOLDEN.eos_token_id,
        "pad_token_id": GOLDEN.pad_token_id,
        "eot_token_id": tokenizer.eot_id,
    }


def test_other_families_keep_their_own_code(tmp_path, capsys):
    """Files that auto_map names are copied unread where they are, else the user is told."""
    values = {
        "model_type": "illada", "architectures": ["ILLaDAForCausalLM"], "hidden_size": 16,
        "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 32, "tie_word_embeddings": True,
        "eos_token_id": 2, "pad_token_id": 1, "mask_token_id": 5, "rope_theta": 1e4,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "hidden_act": "silu",
        "auto_map": {
            "AutoConfig": "configuration_illada.ILLaDAConfig",
            "AutoModel": "modeling_illada.ILLaDAForCausalLM",
        },
    }  # fmt: skip
    source = tmp_path / "source"
    source.mkdir()
    (source / "modeling_illada.py").write_text("raise SystemExit('nobody runs this')")
    folder = complete(
        tmp_path, config=LLAMA.read_config(values), layout="llama", source_folder=source
    )
    assert json.loads((folder / "config.json").read_text()) == values
    assert (folder / "modeling_illada.py").read_text() == "raise SystemExit('nobody runs this')"
    assert "auto_map names configuration_illada.py" in capsys.readouterr().err
    text = (folder / "README.md").read_text()
    assert "names classes of another project" in text
    assert "```python" not in text


def test_what_a_layout_cannot_express_leaves_the_folder_alone(tmp_path):
    config = ModelConfig.from_dict(GOLDEN.to_dict() | {"scale_logits": True})
    with pytest.raises(UserError, match="scale_logits=True"):
        complete(tmp_path, config=config, layout="llama")
    assert not any((tmp_path / "target").iterdir())


def test_a_damaged_tokenizer_config_is_told(source, tmp_path):
    (source / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer_config.json: not JSON"):
        complete(tmp_path, source_folder=source)
    assert not (tmp_path / "target" / "config.json").exists()


def test_the_card_says_what_the_model_is():
    text = model_card("my-model", config=preset("llada-100m"), layout="llada")
    assert metadata(text)["library_name"] == "transformers"
    assert "# my-model\n" in text
    assert "| parameters | 124,327,616 |" in text
    assert "| mask, end-of-text id | 126336, 126081 |" in text
    assert "## Training" not in text


def test_each_layout_has_its_caveats():
    llada, llama = (model_card("m", config=GOLDEN, layout=layout) for layout in ("llada", "llama"))
    for text in (llada, llama):
        assert "not to the next one" in text
        assert "padding goes to the left" in text
    assert "transformers 4.57 or later" in llada
    assert "transformers 5.2 or later" in llama
    for word in ("runs the model causally", "autoregressive one: wrong text", "rounds rotary"):
        assert word in llama
        assert word not in llada


def test_the_card_of_a_run_has_its_recipe_and_nothing_of_its_machine(tmp_path):
    settings = {
        "model_name_or_path": "llada-100m", "dataset_args": "owner/corpus[train:1000]",
        "learning_rate": 0.002, "max_steps": 1500, "lora": False, "r": 32,
        "output_dir": "/home/me/run", "tokenizer_name_or_path": "/home/me/tokenizer",
        "report_to": "wandb", "save_steps": 0.25,
        "lr_segments": "/a/b[train:10]+owner/c + /d/e",
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "summary.txt").write_text("validation text  nats/token\nthis model  4.2\n")
    text = model_card(
        "m", config=GOLDEN, layout="llada", source_folder=tmp_path, recipe={"step": 1000}
    )
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert recipe == {
        "model_name_or_path": "llada-100m",
        "dataset_args": "owner/corpus[train:1000]",
        "learning_rate": 0.002,
        "lora": False,
        "max_steps": 1500,
        "tokenizer_name_or_path": "tokenizer",
        "lr_segments": "b[train:10] + owner/c + e",
        "step": 1000,
    }
    assert "this model  4.2" in text
    assert "/home/me" not in text
    assert metadata(text)["datasets"] == ["owner/corpus"]
    assert "base_model" not in metadata(text)  # a preset is a shape


def test_metadata_of_the_source_stays_true(tmp_path):
    """The licence, the language and the origin survive a conversion; the rest is written anew."""
    (tmp_path / "README.md").write_text(
        "---\nlicense: mit\nlanguage: [en, zh]\nbase_model: GSAI-ML/LLaDA-8B-Base\n"
        "library_name: other\n---\n# Old\n"
    )
    text = model_card("m", config=GOLDEN, layout="llada", source_folder=tmp_path)
    found = metadata(text)
    assert (found["license"], found["language"]) == ("mit", ["en", "zh"])
    assert found["base_model"] == "GSAI-ML/LLaDA-8B-Base"
    assert found["library_name"] == "transformers"
    assert "# Old" not in text


def test_a_licence_survives_the_way_through_a_flax_folder(source, tmp_path):
    (source / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "flax").mkdir()
    copy_side_files(source, tmp_path / "flax")
    folder = complete(tmp_path, source_folder=tmp_path / "flax")
    assert metadata((folder / "README.md").read_text())["license"] == "mit"


def test_the_origin_is_read_from_where_the_hub_put_it(tmp_path):
    folder = tmp_path / "models--GSAI-ML--LLaDA-8B-Base" / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    text = model_card("m", config=GOLDEN, layout="llada", source_folder=folder)
    assert metadata(text)["base_model"] == "GSAI-ML/LLaDA-8B-Base"
    text = model_card(
        "m", config=GOLDEN, layout="llada", recipe={"model_name_or_path": "owner/model"}
    )
    assert metadata(text)["base_model"] == "owner/model"


def test_a_checkpoint_of_a_run_has_its_recipe_and_its_step(tmp_path):
    (tmp_path / "config.yaml").write_text("learning_rate: 0.5\n")
    folder = tmp_path / "checkpoints" / "250"
    assert checkpoint_of(folder) == checkpoint_of(folder / "params") == {"checkpoint": 250}
    assert checkpoint_of(tmp_path) == {}
    text = model_card("m", config=GOLDEN, layout="llada", source_folder=folder)
    assert "learning_rate: 0.5" in text


def test_the_card_tells_the_stored_types(tmp_path):
    folder = tmp_path / "target"
    folder.mkdir()
    for file in DENSE.glob("*.safetensors*"):
        (folder / file.name).write_bytes(file.read_bytes())
    complete_folder(folder, config=GOLDEN)
    assert "| stored type | float32 |" in (folder / "README.md").read_text()


@pytest.mark.parametrize("text", ["---\n: [\n---\n", "no front matter", "---\n- a\n---\n"])
def test_a_card_without_readable_metadata_is_no_obstacle(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    card = model_card("m", config=GOLDEN, layout="llada", source_folder=tmp_path)
    assert metadata(card)["library_name"] == "transformers"
