"""The released configuration: read, checked, written back."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.opening import read_config
from jaxllada.common.config.presets import PRESETS, preset
from jaxllada.common.counting import count_parameters, fit, flops_per_token
from jaxllada.common.errors import UserError
from tests.jax.golden import DENSE, VARIANT_CONFIGS

FIELDS = {f.name: f.default for f in dataclasses.fields(ModelConfig)}
RELEASED = json.loads((DENSE / "config.json").read_text())


def test_a_released_file_is_written_back_unchanged_and_in_order():
    written = ModelConfig.from_dict(RELEASED).to_dict()
    assert written == RELEASED
    assert list(written) == list(RELEASED)


@given(
    unknown=st.dictionaries(st.text(min_size=1), st.none() | st.integers() | st.text(), max_size=4),
    absent=st.sets(st.sampled_from(["precision", "alibi_bias_max", "init_device", "init_std"])),
)
def test_unknown_and_absent_fields_survive(unknown, absent):
    values = {k: v for k, v in RELEASED.items() if k not in absent}
    values |= {k: v for k, v in unknown.items() if k not in FIELDS}
    assert ModelConfig.from_dict(values).to_dict() == values


def test_a_changed_field_is_written_even_if_the_file_did_not_have_it():
    values = {k: v for k, v in RELEASED.items() if k != "init_std"}
    config = dataclasses.replace(ModelConfig.from_dict(values), init_std=0.5, n_layers=7)
    assert config.to_dict() == {**values, "n_layers": 7, "init_std": 0.5}


def test_a_preset_survives_a_round_trip_through_a_folder(tmp_path):
    for name, config in PRESETS.items():
        config.save(tmp_path)
        assert read_config(tmp_path) == config, name
        assert [f.name for f in tmp_path.iterdir()] == ["config.json"]


def test_configurations_are_hashable_so_that_compiled_functions_can_key_on_them():
    assert len({hash(ModelConfig.from_dict(c)) for c in VARIANT_CONFIGS.values()}) > 15


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alibi": True}, "alibi=True is not supported: use False"),
        ({"rope": False}, "rope=False is not supported"),
        ({"block_type": "parallel"}, "block_type='parallel' is not supported: use 'llama'"),
        ({"layer_norm_type": "amd_compatible"}, "layer_norm_type='amd_compatible'"),
        ({"activation_type": "swiglu"}, "needs block_type='sequential'"),
        ({"n_heads": 3}, "n_heads=3 does not divide d_model=64"),
        ({"n_kv_heads": 3}, "n_kv_heads=3 does not divide n_heads=4"),
        ({"multi_query_attention": True}, "contradicts multi_query_attention"),
        ({"n_layers": 0}, "n_layers=0 must be at least 1"),
        ({"block_group_size": 2}, "block_group_size=2 does not divide n_layers=3"),
        ({"embedding_size": 10}, "embedding_size=10 is smaller than vocab_size=512"),
        ({"mask_token_id": 512}, "mask_token_id=512 is not one of the 512 embedding rows"),
        ({"residual_dropout": 1.0}, r"residual_dropout=1.0 must lie in \[0, 1\)"),
        ({"d_model": "64"}, "d_model='64' has the wrong type, expected int"),
        ({"n_layers": True}, "n_layers=True has the wrong type"),
    ],
)
def test_what_cannot_be_run_is_refused_with_key_and_value(change, message):
    with pytest.raises(UserError, match=message):
        ModelConfig.from_dict(RELEASED | change)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "not valid JSON"),
        ("[]", "holds a list"),
        ('{"model_type": "qwen2", "hidden_size": 4}', "model_type='qwen2'"),
        (json.dumps(RELEASED | {"alibi": True}), "config.json: alibi=True"),
    ],
)
def test_a_bad_file_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_config(tmp_path)


def test_the_nearest_preset_is_suggested():
    with pytest.raises(UserError, match="did you mean 'llada-8b'"):
        preset("llada8b")


@pytest.mark.parametrize(
    ("budget", "vocab"), [(30e6, 8000), (100e6, 32000), (1e9, 126464), (7e9, 126464)]
)
def test_fit_meets_the_budget_within_three_percent(budget, vocab):
    config = fit(int(budget), vocab, template=preset("llada-8b"))
    assert abs(count_parameters(config).total / budget - 1) < 0.03
    assert config.rows == config.vocab_size == vocab
    assert config.mask_id < vocab
    assert config.mask_id != config.eos_token_id


def test_fit_refuses_a_budget_the_vocabulary_alone_exceeds():
    with pytest.raises(UserError, match=r"fit=1000000 .* use a smaller vocabulary"):
        fit(1_000_000, 126464, template=preset("llada-8b"))


def test_flops_follow_two_per_weight_plus_the_scores():
    config, length = preset("llada-8b"), 1024
    count = count_parameters(config)
    linear = 2 * (count.attention + count.mlp + count.head)
    scores = 4 * config.n_layers * config.d_model * length
    assert flops_per_token(config, length) == linear + scores
    half = flops_per_token(config, length, head_fraction=0.5)
    assert half == linear - count.head + scores
