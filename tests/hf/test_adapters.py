"""Adapters go both ways between here and the PEFT library, on both layouts, head left alone."""

import json

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file

from jaxllada.common.config.opening import read_config
from jaxllada.common.weights.adapter import Adapter, target_paths
from jaxllada.common.weights.layouts import LAYOUTS
from jaxllada.common.weights.peft import read_adapter, write_adapter
from jaxllada.convert import load
from tests.jax.golden import DENSE, dense_values

CONFIG = read_config(DENSE)
IDS = torch.as_tensor(dense_values()["fwd_ids"][:1, :12])
LEAVES = {
    "llada": ["q_proj", "v_proj", "ff_proj"],
    "llama": ["q_proj", "o_proj", "gate_proj", "down_proj"],
}


def base_model(folder):
    kind = transformers.AutoModelForCausalLM
    return kind.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()


def some_adapter(names="all-linear", r=3, seed=0, **settings):
    rng = np.random.default_rng(seed)
    factors = {}
    for path in target_paths(CONFIG, names):
        layer = load(DENSE)
        for name in path:
            layer = getattr(layer, name)
        layers, width, out = layer.kernel.shape
        factors[path] = (
            rng.standard_normal((layers, r, width)).astype(np.float32) / 4,
            rng.standard_normal((layers, out, r)).astype(np.float32) / 4,
        )
    return Adapter(factors, r=r, lora_alpha=5, **settings)


def assert_close(ours, theirs):
    """Sums of float32 in another order: the bound of the golden logits."""
    np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), atol=2e-4)


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("targets", ["all-linear", "some"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_peft_saves_is_merged_as_peft_does(exported, tmp_path, layout, targets, use_rslora):
    chosen = LEAVES[layout] if targets == "some" else targets
    settings = LoraConfig(r=2, lora_alpha=7, target_modules=chosen, use_rslora=use_rslora)
    torch.manual_seed(0)
    model = get_peft_model(base_model(exported(layout)), settings)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    model.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path, CONFIG)
    assert len(adapter.factors) == (7 if targets == "all-linear" else len(LEAVES[layout]))
    merged = load(DENSE, adapter=tmp_path)
    assert_close(merged(IDS.numpy()), model(IDS).logits)
    plain = base_model(exported(layout))(IDS).logits
    assert np.abs(plain.detach().numpy() - np.asarray(merged(IDS.numpy()))).max() > 0.1
    weights = model.merge_and_unload().state_dict()
    table = {entry.path: entry for entry in LAYOUTS[layout].table(CONFIG)}
    for path in adapter.factors:
        entry = table[*path, "kernel"]
        node = merged
        for name in path:
            node = getattr(node, name)
        for layer in range(CONFIG.n_layers):
            theirs = weights[LAYOUTS[layout].part_of(CONFIG, entry, layer).name]
            np.testing.assert_allclose(node.kernel[...][layer].T, theirs, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_here_is_read_by_peft(exported, tmp_path, layout):
    adapter = some_adapter(use_rslora=True)
    write_adapter(tmp_path, adapter, CONFIG, layout=layout, base_model="me/base")
    model = PeftModel.from_pretrained(base_model(exported(layout)), tmp_path)
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert len(adapted) == 7 * CONFIG.n_layers
    head = LAYOUTS[layout].head.removesuffix(".weight")
    assert not any(name.endswith(f"model.{head}") for name in adapted)
    assert_close(load(DENSE, adapter=tmp_path)(IDS.numpy()), model(IDS).logits)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "me/base"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_adapter_comes_back_bit_for_bit(exported, tmp_path, layout):
    """PEFT -> here -> PEFT, by names and bytes; and the other way round."""
    settings = LoraConfig(r=2, lora_alpha=7, target_modules=LEAVES[layout], lora_dropout=0.1)
    get_peft_model(base_model(exported(layout)), settings).save_pretrained(tmp_path / "in")
    adapter = read_adapter(tmp_path / "in", CONFIG)
    write_adapter(tmp_path / "out", adapter, CONFIG, layout=layout)
    before, after = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("in", "out"))
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    said, kept = (
        json.loads((tmp_path / f / "adapter_config.json").read_text()) for f in ("in", "out")
    )
    assert set(said.pop("target_modules")) == set(kept.pop("target_modules"))
    assert kept == said
    again = read_adapter(tmp_path / "out", CONFIG)
    assert (again.r, again.scale, again.lora_dropout) == (2, 3.5, 0.1)
    other = next(name for name in LAYOUTS if name != layout)
    write_adapter(tmp_path / "other", adapter, CONFIG, layout=other)
    crossed = read_adapter(tmp_path / "other", CONFIG)
    assert crossed.factors.keys() == adapter.factors.keys()
    for path, pair in adapter.factors.items():
        assert all(
            a.tobytes() == b.tobytes() for a, b in zip(pair, crossed.factors[path], strict=True)
        )
