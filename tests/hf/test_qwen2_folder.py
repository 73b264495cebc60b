"""An exported autoregressive twin is a Qwen2 for transformers, without code of this project."""

import dataclasses
import json

import jax
import numpy as np
import torch
import transformers

from jaxllada import convert
from jaxllada.__main__ import main
from jaxllada.common.config.presets import PRESETS
from jaxllada.common.config.qwen2 import twin_of
from jaxllada.common.tokenizer import Tokenizer
from jaxllada.models.family import make_model


def test_an_exported_twin_loads_and_answers_alike(tmp_path):
    tokenizer = Tokenizer.train(["one two three"], 262, tmp_path / "ours")
    rows, eos = tokenizer.vocab_size, tokenizer.eos_id
    shape = dataclasses.replace(
        PRESETS["tiny"], vocab_size=rows, embedding_size=rows, mask_token_id=tokenizer.mask_id,
        eos_token_id=eos, pad_token_id=eos,
    )  # fmt: skip
    model = make_model(twin_of(shape), rngs=jax.random.key(0))
    convert.save(model, tmp_path / "ours")
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "hf")]) == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    assert type(theirs).__name__ == "Qwen2ForCausalLM"
    found = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = found("one two three", return_tensors="pt").input_ids
    assert ids[0].tolist() == tokenizer.encode("one two three")
    logits = theirs(ids).logits.detach().numpy()
    np.testing.assert_allclose(model(ids.numpy()), logits, atol=2e-4)
    assert theirs.generation_config.bos_token_id == eos
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    assert not any(name.endswith(".py") for name in names)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "autoregressive" in card
    assert "mask" not in card.split("## Caveats")[0].replace("masked-diffusion", "")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["model_type"] == "qwen2"
    assert torch.equal(theirs.lm_head.weight, torch.from_numpy(np.array(model.head_weight)))
