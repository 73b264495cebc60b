"""Names and config.json of the layouts: nothing is lost between them, nothing is guessed."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllada.common.config.family import LLADA_KEY, LLAMA_KEY
from jaxllada.common.config.llama import from_llama, to_llama
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.presets import preset
from jaxllada.common.counting import count_parameters
from jaxllada.common.errors import UserError
from jaxllada.common.weights.layouts import LAYOUTS, find_layout, layout_of
from jaxllada.common.weights.names import stored_names
from tests.model_folders import ILLADA, configs

LLAMA = ILLADA | {"model_type": "llama", "is_causal": False, "mask_token_id": 5}
LLAMA |= {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}


def through_json(value):
    return json.loads(json.dumps(value))


def size(layout, config):
    sizes = []
    for tensor in LAYOUTS[layout].tensors(config):
        count = 1
        for side in tensor.shape:
            count *= side
        sizes.append(count)
    return sum(sizes)


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [
        ("llada-8b", 291, 8_015_581_184),
        ("llada-1b", 201, 1_487_243_264),
        ("llada-100m", 57, 124_327_616),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_models_have_their_number_of_tensors_and_weights(
    layout, name, tensors, parameters
):
    config = preset(name)
    assert len(LAYOUTS[layout].tensors(config)) == tensors
    assert size(layout, config) == parameters


def test_illada_stores_its_tied_head():
    values = ILLADA | {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 155136,
    }  # fmt: skip
    config = from_llama(values)
    names = [tensor.name for tensor in LAYOUTS["llama"].tensors(config)]
    assert len(names) == 291
    assert names[0] == "model.embed_tokens.weight"
    assert names[-1] == "lm_head.weight"
    assert size("llama", config) == 8_250_462_208
    assert count_parameters(config).total == size("llada", config) == 7_615_025_152
    assert not config.rope_full_precision


@settings(max_examples=60, deadline=None)
@given(config=configs())
def test_the_tensors_of_a_layout_are_the_weights_of_the_model(config):
    tensors = LAYOUTS["llada"].tensors(config)
    assert sorted(tensor.name for tensor in tensors) == sorted(stored_names(config))
    assert size("llada", config) == count_parameters(config).total
    parts = [(entry.path, layer) for tensor in tensors for entry, layer in tensor.parts]
    assert len(set(parts)) == len(parts)


@settings(max_examples=100, deadline=None)
@given(config=configs(for_llama=True))
def test_a_released_config_survives_the_llama_layout(config):
    released = config.to_dict()
    llama = through_json(to_llama(config))
    assert layout_of(llama).name == "llama"
    back = from_llama(llama)
    assert through_json(back.to_dict()) == released
    assert back == config
    assert to_llama(back) == llama


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_llama_config_survives_the_released_layout(data):
    draw = data.draw
    values = LLAMA | {
        "rms_norm_eps": draw(st.sampled_from([1e-5, 1e-6])),
        "tie_word_embeddings": draw(st.booleans()),
        "unknown": draw(st.sampled_from([None, {"a": [1]}])),
        "eos_token_id": draw(st.sampled_from([2, [2, 3]])),
    }
    dropped = draw(st.lists(st.sampled_from(["initializer_range", "mlp_bias", "bos_token_id"])))
    values = {key: value for key, value in values.items() if key not in dropped}
    if draw(st.booleans()):
        theta = values.pop("rope_theta")
        values["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    config = from_llama(values)
    assert config.rope_theta == 500000.0
    released = through_json(config.to_dict())
    assert layout_of(released).name == "llada"
    again = ModelConfig.from_dict(released)
    assert again == config
    assert to_llama(again) == values
    assert through_json(again.to_dict()) == released


def test_what_was_never_a_llada_needs_no_second_copy():
    plain = to_llama(dataclasses.replace(from_llama(LLAMA), extra={}))
    assert LLADA_KEY not in plain
    assert LLAMA_KEY not in from_llama(plain).extra


def test_an_edited_llama_config_wins_over_what_is_kept():
    llama = to_llama(preset("tiny"))
    assert llama[LLADA_KEY]["d_model"] == llama["hidden_size"] == 32
    llama |= {"mask_token_id": 9, "vocab_size": 140, "rope_theta": 7.0}
    config = from_llama(llama)
    assert (config.mask_token_id, config.rows, config.rope_theta) == (9, 140, 7.0)
    assert config.rope_full_precision  # llama files cannot say this, the kept fields do


def test_a_changed_model_changes_only_its_fields_in_the_file_it_came_from():
    values = LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 3.0}}
    config = dataclasses.replace(from_llama(values), rope_theta=4.0, max_sequence_length=99)
    expected = values | {"max_position_embeddings": 99}
    expected["rope_parameters"] = {"rope_type": "default", "rope_theta": 4.0}
    assert to_llama(config) == expected


def test_every_field_llama_cannot_express_is_named():
    config = dataclasses.replace(
        preset("tiny"), scale_logits=True, attention_layer_norm=True, include_qkv_bias=True
    )
    message = (
        "layout=llama cannot express attention_layer_norm=True, include_qkv_bias=True, "
        "scale_logits=True"
    )
    with pytest.raises(UserError, match=message):
        to_llama(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 8}, "head_dim=8 is not supported"),
        ({"hidden_act": "gelu_new"}, "hidden_act='gelu_new' is not supported"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling=.* is not supported"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters=.* is not supported"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_scaling": 2}, "rope_scaling=2: expected null or an object"),
        ({"attention_bias": True}, "attention_bias=True, mlp_bias=False .* is not supported"),
        ({"hidden_size": None, "vocab_size": None}, "hidden_size, vocab_size missing"),
        ({"hidden_size": "16"}, "hidden_size='16' has the wrong type, expected int"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps='x' has the wrong type, expected float"),
        ({"pad_token_id": 5}, "mask_token_id and pad_token_id are both 5"),
        ({LLADA_KEY: 3}, "llada_config holds a int"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings=None: expected true or false"),
    ],
)
def test_llama_configs_that_cannot_be_run_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        from_llama(LLAMA | change)


def test_illada_may_ask_for_layer_norm():
    config = from_llama(ILLADA | {"layer_norm_eps": 1e-5})
    assert (config.layer_norm_type, config.norm_bias) == ("default", True)
    assert to_llama(config) == ILLADA | {"layer_norm_eps": 1e-5}
    with pytest.raises(UserError, match="layer_norm_eps=1e-06 is not supported"):
        from_llama(ILLADA | {"layer_norm_eps": 1e-6})


def test_harmless_rope_scaling_is_accepted():
    for rules in ({"type": "default"}, {"rope_type": "linear", "factor": 1}):
        assert from_llama(LLAMA | {"rope_scaling": rules}).rope_theta == 500000.0


@pytest.mark.parametrize(
    ("values", "layout"),
    [
        ({"model_type": "llada", "d_model": 4}, "llada"),
        ({"d_model": 4}, "llada"),
        (ILLADA, "llama"),
        ({"architectures": ["ILLaDAForCausalLM"]}, "llama"),
        ({"model_type": "llava_llada", "hidden_size": 4}, "llama"),
        ({"model_type": "llada", "hidden_size": 4}, "llama"),
        ({"model_type": "llama", "is_causal": False}, "llama"),
        ({"model_type": "llama", "mask_token_id": 4}, "llama"),
    ],
)
def test_families_are_told_by_their_config(values, layout):
    assert layout_of(values).name == layout


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "llama"}, "is an autoregressive model"),
        ({"model_type": "llada", "num_experts": 64, "d_model": 4}, "LLaDA-MoE"),
        ({"model_type": "llada2_moe"}, "LLaDA2, a mixture of experts"),
        ({"model_type": "Dream"}, "shifted by one position"),
        ({"model_type": "a2d-qwen3"}, "model_type='a2d-qwen3' is not supported"),
        ({"model_type": "qwen3"}, "an autoregressive model"),
        ({"model_type": "bert"}, "'bert' with these fields is not a dense LLaDA model"),
    ],
)
def test_other_families_are_refused_by_name(values, message):
    with pytest.raises(UserError, match=message):
        layout_of(values)


def test_an_unknown_layout_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="expected llada or llama or qwen2; did you mean"):
        find_layout("lama")
