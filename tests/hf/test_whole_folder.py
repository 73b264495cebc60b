"""What else an exported folder holds works: tokenizer, chat template, the code of the card."""

import itertools
import json
import re

import pytest
import transformers
from transformers import AutoTokenizer, GenerationConfig

from jaxllada.common.tokenizer import Tokenizer
from jaxllada.common.weights.export import to_hugging_face
from jaxllada.common.weights.layouts import find_layout
from jaxllada.common.weights.opening import open_folder
from tests.jax.golden import DENSE

MAJOR = int(transformers.__version__.split(".")[0])
MESSAGES = [{"role": "user", "content": "def main(): return 1"}]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The golden weights with a tokenizer whose special ids are theirs."""
    folder = tmp_path_factory.mktemp("source")
    for file in DENSE.glob("*.safetensors*"):
        (folder / file.name).write_bytes(file.read_bytes())
    syllables = ["def", "re", "turn", "ma", "in", "wor", "ld", "lo", "vi", "ka", "su", "ti"]
    words = [" ".join(map("".join, itertools.permutations(syllables, 3)))]
    tokenizer = Tokenizer.train(words, 512)
    assert tokenizer.vocab_size == 512
    tokenizer.save(folder)
    ids = {
        "mask_token_id": tokenizer.mask_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    config = json.loads((DENSE / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | ids))
    return folder


@pytest.fixture(scope="module", params=["llada", "llama"])
def folder(request, source, tmp_path_factory):
    if request.param == "llama" and MAJOR < 5:
        pytest.skip("transformers before 5.2 runs this layout causally")
    target = tmp_path_factory.mktemp("made") / request.param
    to_hugging_face(open_folder(source), target, find_layout(request.param))
    return target


def test_the_tokenizer_gives_our_ids_and_our_chat(folder, source):
    ours, theirs = Tokenizer.from_folder(source), AutoTokenizer.from_pretrained(folder)
    text = "def main():\n    return 'word' + <|mdm_mask|>"
    assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text)
    rendered = theirs.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=True, return_dict=False
    )
    assert rendered == ours.render(MESSAGES)
    ids = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert ids == ours.chat(MESSAGES)
    assert theirs.mask_token_id == ours.mask_id


def test_the_generation_config_names_the_special_ids(folder, source):
    ours = Tokenizer.from_folder(source)
    config = GenerationConfig.from_pretrained(folder)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (
        ours.bos_id, ours.eos_id, ours.pad_id,
    )  # fmt: skip
    assert config.eot_token_id == ours.eot_id


def test_the_code_of_the_card_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder.parent)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    assert names["answer"].shape == (1, 64)
    printed = capsys.readouterr()
    assert printed.out.strip()
    assert "custom code" not in printed.out + printed.err  # transformers asks for nothing


def test_a_tokenizer_saved_by_transformers_5_is_read_by_both(source, tmp_path, capfd):
    """As version 5 writes it: 4.57 knows neither its class nor a list of further tokens."""
    changed = tmp_path / "source"
    changed.mkdir()
    for file in source.iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    file = changed / "tokenizer_config.json"
    values = json.loads(file.read_text()) | {
        "backend": "tokenizers",
        "extra_special_tokens": ["<|eot_id|>"],
        "is_local": True,
        "tokenizer_class": "TokenizersBackend",
    }
    file.write_text(json.dumps(values))
    (changed / "special_tokens_map.json").unlink()
    to_hugging_face(open_folder(changed), tmp_path / "target", find_layout("llada"))
    assert "TokenizersBackend became PreTrainedTokenizerFast" in capfd.readouterr().err
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "target")
    assert "<|eot_id|>" in tokenizer.all_special_tokens
    assert tokenizer("a<|eot_id|>b").input_ids == Tokenizer.from_folder(changed).encode(
        "a<|eot_id|>b"
    )


def test_transformers_saves_a_tokenizer_that_we_read_again(folder, tmp_path):
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    text = "def main(): return <|mdm_mask|>"
    before, after = Tokenizer.from_folder(folder), Tokenizer.from_folder(tmp_path)
    assert after.encode(text) == before.encode(text)
    assert (after.mask_id, after.eot_id) == (before.mask_id, before.eot_id)
    assert after.render(MESSAGES) == before.render(MESSAGES)
