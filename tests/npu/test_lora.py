"""Low-rank adapters in torch, and their files."""

import dataclasses
import functools

import numpy as np
import pytest
import torch

from jaxllada.common.config.lora import LoraConfig
from jaxllada.common.config.presets import preset
from jaxllada.common.errors import UserError
from jaxllada.common.weights.peft import read_adapter, write_adapter
from npu_backend.convert import load, save
from npu_backend.models.lora import (
    LoraLinear,
    adapted,
    adapter_of,
    add_adapters,
    merge,
    put_adapter,
)
from npu_backend.models.mask_predictor import MaskPredictor
from tests.npu.devices import DEVICE, KERNELS, get, put

TINY = preset("tiny")
SEQUENTIAL = dataclasses.replace(TINY, block_type="sequential", activation_type="swiglu")
LORA = functools.partial(LoraConfig, r=3, lora_alpha=6.0)
TOKENS = put(np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 12)))


def make(config=TINY):
    model = MaskPredictor(config, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    model.use(list(KERNELS.values())[-1])
    return model


def with_adapters(config=TINY, *, is_trained=True, **changes):
    model = add_adapters(make(config), LORA(**changes), seed=1)
    if is_trained:
        with torch.no_grad():
            for number, (_, _, module) in enumerate(adapted(model)):
                noise = np.random.default_rng(number).normal(size=tuple(module.lora_b.shape))
                module.lora_b.copy_(put(noise.astype(np.float32) / 20))
    return model


def factors_of(model, config=TINY, **changes):
    return adapter_of(dict(model.named_parameters()), LORA(**changes), config)


def logits(model, tokens=TOKENS):
    with torch.no_grad():
        return get(model(tokens))


def test_fresh_adapters_change_nothing():
    np.testing.assert_array_equal(logits(with_adapters(is_trained=False)), logits(make()))


def test_only_factors_are_trained_and_the_head_is_not_adapted():
    model = with_adapters()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 * TINY.n_layers
    assert all(name.endswith(("lora_a", "lora_b")) for name in trained)
    assert not any(name.startswith("ff_out") for name in trained)
    assert {name for name, _ in make().named_parameters()} <= {
        name for name, _ in model.named_parameters()
    }
    model(TOKENS).sum().backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None) == (name in trained), name


@pytest.mark.parametrize("use_rslora", [False, True])
def test_an_adapted_layer_is_the_weight_plus_the_scaled_product(use_rslora):
    model = with_adapters(use_rslora=use_rslora)
    scale = 6 / (3**0.5 if use_rslora else 3)
    for _, _, module in adapted(model):
        x = put(np.random.default_rng(0).normal(size=(4, module.weight.shape[1])).astype("f4"))
        whole = get(module.weight) + scale * get(module.lora_b) @ get(module.lora_a)
        np.testing.assert_allclose(get(module(x)), get(x) @ whole.T, atol=2e-5)


@pytest.mark.parametrize("config", [TINY, SEQUENTIAL], ids=["llama", "sequential"])
def test_merging_gives_the_same_function_without_adapters(config):
    model = with_adapters(config)
    before = logits(model)
    assert np.abs(before - logits(make(config))).max() > 1e-2
    merge(model)
    assert not any(isinstance(module, LoraLinear) for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    np.testing.assert_allclose(logits(model), before, atol=2e-5)


@pytest.mark.parametrize("layout", ["llada", "llama"])
def test_adapters_come_back_from_their_files(layout, tmp_path):
    model = with_adapters(target_modules="q_proj,v_proj,ff_out")
    expected = logits(model)
    adapter = factors_of(model, target_modules="q_proj,v_proj,ff_out")
    assert [path[-1] for path in adapter.factors] == ["q_proj", "v_proj", "ff_out"]
    write_adapter(tmp_path / "adapter", adapter, TINY, layout=layout)
    again = put_adapter(make(), read_adapter(tmp_path / "adapter", TINY))
    np.testing.assert_array_equal(logits(again), expected)
    save(make(), tmp_path / "base", layout=layout)
    loaded = load(tmp_path / "base", device=DEVICE, adapter=tmp_path / "adapter")
    np.testing.assert_allclose(logits(loaded), expected, atol=2e-5)


def test_fused_products_of_sequential_blocks_share_a_factor_and_can_be_written(tmp_path):
    model = with_adapters(SEQUENTIAL)
    expected = logits(model)
    write_adapter(tmp_path, factors_of(model, SEQUENTIAL), SEQUENTIAL)
    again = put_adapter(make(SEQUENTIAL), read_adapter(tmp_path, SEQUENTIAL))
    np.testing.assert_array_equal(logits(again), expected)


def test_dropout_acts_before_the_factors_and_in_training_only():
    model = with_adapters(lora_dropout=0.5)
    plain = logits(model)
    np.testing.assert_array_equal(plain, logits(with_adapters()))
    model.train()
    torch.manual_seed(0)
    assert np.abs(logits(model) - plain).max() > 1e-3


def test_a_model_with_adapters_is_not_saved_without_them(tmp_path):
    with pytest.raises(UserError, match="merge them first"):
        save(with_adapters(), tmp_path / "out")


def test_an_unknown_name_is_refused_before_anything_changes():
    model = make()
    with pytest.raises(UserError, match="target_modules=queries: expected all-linear or names of"):
        add_adapters(model, LORA(target_modules="queries"))
    assert all(p.requires_grad for p in model.parameters())
