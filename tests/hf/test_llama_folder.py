"""Exported `llama` folders run in stock LlamaForCausalLM, with no code of ours."""

import numpy as np
import pytest
import torch
import transformers
from transformers import LlamaForCausalLM

from jaxllada.common.config.opening import read_config
from jaxllada.common.weights.export import to_hugging_face
from jaxllada.common.weights.layouts import LLAMA
from jaxllada.common.weights.opening import open_folder
from tests.jax.golden import dense_values, write_variant

if int(transformers.__version__.split(".")[0]) < 5:
    pytest.skip("transformers before 5.2 ignores is_causal=false", allow_module_level=True)

GOLDEN = dense_values()


def logits(model, *args):
    with torch.no_grad():
        return model(*(torch.tensor(array) for array in args)).logits.numpy()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_are_those_of_the_released_model(exported, attention):
    model = LlamaForCausalLM.from_pretrained(exported("llama"), attn_implementation=attention)
    close = {"atol": 2e-5, "rtol": 0}  # float32 sums in another order, logits up to about 10
    np.testing.assert_allclose(logits(model, GOLDEN["fwd_ids"]), GOLDEN["fwd_logits"], **close)
    mask = GOLDEN["fwdmask_attention_mask"]
    seen = mask.astype(bool)
    found = logits(model, GOLDEN["fwd_ids"], mask)
    np.testing.assert_allclose(found[seen], GOLDEN["fwdmask_logits"][seen], **close)


@pytest.mark.parametrize("name", ["gqa", "mqa", "tied", "embsize", "ratio", "rope16"])
def test_every_field_it_can_express_arrives(name, tmp_path):
    golden = write_variant(name, tmp_path / "source")
    to_hugging_face(open_folder(tmp_path / "source"), tmp_path / name, LLAMA)
    model = LlamaForCausalLM.from_pretrained(tmp_path / name)
    np.testing.assert_allclose(logits(model, golden["ids"]), golden["logits"], atol=3e-5, rtol=1e-5)


def test_what_transformers_saves_is_the_same_model(exported, tmp_path):
    before = LlamaForCausalLM.from_pretrained(exported("llama"))
    before.save_pretrained(tmp_path / "again")
    after = LlamaForCausalLM.from_pretrained(tmp_path / "again")
    assert after.config.is_causal is False
    ids = GOLDEN["fwd_ids"]
    assert np.array_equal(logits(after, ids), logits(before, ids))
    source = open_folder(tmp_path / "again")
    assert source.kind == "llama"
    assert source.config.mask_token_id == read_config(exported("llada")).mask_token_id


def test_both_layouts_hold_the_same_bits(exported):
    llada, llama = (open_folder(exported(layout)) for layout in ("llada", "llama"))
    assert llada.config == llama.config
    for entry in llada.entries:
        for layer in range(llada.config.n_layers if entry.per_layer else 1):
            a, b = llada.read(entry, layer), llama.read(entry, layer)
            assert a.tobytes() == b.tobytes(), entry.path
