"""The verb `convert`: every bit comes back, both ways, whatever the type and the shards."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllada.__main__ import main
from jaxllada.common.config.opening import read_config
from jaxllada.common.manifest import write_manifest
from jaxllada.common.weights.index import WeightFolder
from jaxllada.common.weights.side_files import side_files
from tests.commands.converted import (
    DTYPES,
    TINY,
    assert_same_model,
    config_of,
    convert,
    snapshot,
    tensors,
    with_code,
    write_model,
)
from tests.jax.golden import DENSE, VARIANT_CONFIGS, write_variant


def assert_round_trip(source, folder, *flags):
    convert("hf-to-flax", source, folder / "flax")
    assert config_of(folder / "flax") == config_of(source)
    convert("flax-to-hf", folder / "flax", folder / "back", *flags)
    assert_same_model(folder / "back", source)


def test_the_golden_checkpoint_comes_back_bit_for_bit(tmp_path):
    assert_round_trip(DENSE, tmp_path)


@pytest.mark.parametrize("name", VARIANT_CONFIGS)
def test_every_golden_variant_comes_back_bit_for_bit(tmp_path, name):
    write_variant(name, tmp_path / "hf")
    assert_round_trip(tmp_path / "hf", tmp_path)


def configs():
    """Dense models of every supported kind, small."""

    def make(heads, group, layers, ffn, vocab, extra_rows, tied, bias, qkv_bias, norms, sequential):
        rows = vocab + extra_rows
        kind = {"block_type": "sequential", "activation_type": "swiglu"} if sequential else {}
        return dataclasses.replace(
            TINY, d_model=heads * 4, n_heads=heads, n_kv_heads=heads // group, n_layers=layers,
            mlp_hidden_size=2 * ffn, vocab_size=vocab, embedding_size=rows, weight_tying=tied,
            include_bias=bias, include_qkv_bias=qkv_bias, attention_layer_norm=norms,
            mask_token_id=rows - 1, eos_token_id=0, pad_token_id=0,
            extra={"torch_dtype": "bfloat16", "some_field": [1, {"a": None}]}, **kind,
        )  # fmt: skip

    flag = st.booleans()
    return st.builds(
        make, heads=st.sampled_from([2, 4]), group=st.sampled_from([1, 2]),
        layers=st.integers(1, 3), ffn=st.integers(1, 9), vocab=st.integers(5, 20),
        extra_rows=st.integers(0, 3), tied=flag, bias=flag, qkv_bias=flag, norms=flag,
        sequential=flag,
    )  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(
    config=configs(), dtype=st.sampled_from(list(DTYPES)),
    shard_bytes=st.sampled_from([1, 300, 2000, 10**9]),
    way_back=st.sampled_from(["100", "1KB", "5GB"]),
)  # fmt: skip
def test_any_model_of_any_type_in_any_shards_comes_back(
    tmp_path_factory, config, dtype, shard_bytes, way_back
):
    folder = tmp_path_factory.mktemp("any")
    source = write_model(folder / "hf", config, dtype=dtype, shard_bytes=shard_bytes)
    assert_round_trip(source, folder, "--shard_size", way_back)


@settings(max_examples=8, deadline=None)
@given(
    layers=st.integers(1, 3), group=st.sampled_from([1, 2]), tied=st.booleans(),
    bias=st.booleans(), dtype=st.sampled_from(list(DTYPES)),
)  # fmt: skip
def test_the_llama_layout_comes_back_through_flax_and_through_llada(
    tmp_path_factory, layers, group, tied, bias, dtype
):
    folder = tmp_path_factory.mktemp("llama")
    config = dataclasses.replace(
        TINY, n_layers=layers, n_kv_heads=4 // group, weight_tying=tied, include_qkv_bias=False,
        include_bias=False, rope_full_precision=False,
    )  # fmt: skip
    source = write_model(folder / "hf", config, layout="llama", dtype=dtype)
    convert("hf-to-flax", source, folder / "flax")
    convert("flax-to-hf", folder / "flax", folder / "back", "--layout", "llama")
    assert_same_model(folder / "back", source)
    convert("flax-to-hf", source, folder / "llada")
    convert("flax-to-hf", folder / "llada", folder / "again", "--layout", "llama")
    assert tensors(folder / "again") == tensors(source)
    again = config_of(folder / "again")
    del again["llada_config"]["auto_map"]  # named on the way
    assert again == config_of(source)


def test_flax_comes_back_file_for_file(hf, tmp_path):
    convert("hf-to-flax", hf, tmp_path / "flax")
    convert("flax-to-hf", tmp_path / "flax", tmp_path / "back")
    convert("hf-to-flax", tmp_path / "back", tmp_path / "again")
    first, second = snapshot(tmp_path / "flax"), snapshot(tmp_path / "again")
    configs = [json.loads(files.pop("config.json")) for files in (first, second)]
    assert second.pop("README.md").startswith(b"---\n")  # the card of the model folder
    assert second == first
    assert configs[1] == with_code(configs[0])


def test_the_tokenizer_travels_byte_for_byte(hf, tmp_path):
    convert("hf-to-flax", hf, tmp_path / "flax")
    convert("flax-to-hf", tmp_path / "flax", tmp_path / "back")
    files = side_files(hf)
    assert len(files) >= 3
    for name, path in files.items():
        assert (tmp_path / "flax" / name).read_bytes() == path.read_bytes()
        assert (tmp_path / "back" / name).read_bytes() == path.read_bytes()


def test_the_type_a_config_names_changes_with_the_weights(tmp_path):
    config = dataclasses.replace(TINY, extra={"torch_dtype": "float32", "other": "float32"})
    source = write_model(tmp_path / "hf", config)
    convert("hf-to-flax", source, tmp_path / "flax", "--dtype", "bfloat16")
    convert("flax-to-hf", tmp_path / "flax", tmp_path / "kept")
    convert("flax-to-hf", source, tmp_path / "half", "--dtype", "float16")
    named = {name: config_of(tmp_path / name)["torch_dtype"] for name in ("flax", "kept", "half")}
    assert named == {"flax": "bfloat16", "kept": "bfloat16", "half": "float16"}
    assert config_of(tmp_path / "half")["other"] == "float32"


def test_a_type_changes_when_asked_and_as_numpy_rounds(hf, tmp_path):
    convert("hf-to-flax", hf, tmp_path / "flax", "--dtype", "bfloat16")
    convert("flax-to-hf", tmp_path / "flax", tmp_path / "kept")
    convert("flax-to-hf", tmp_path / "flax", tmp_path / "half", "--dtype", "float16")
    files, kept, half = (WeightFolder(f) for f in (hf, tmp_path / "kept", tmp_path / "half"))
    for name in files.names:
        rounded = files.read(name).astype(ml_dtypes.bfloat16)
        assert kept.read(name).tobytes() == rounded.tobytes()
        assert half.read(name).tobytes() == rounded.astype(np.float16).tobytes()


def test_what_was_written_is_told_and_no_bar_is_drawn_in_a_log(hf, tmp_path, capsys):
    convert("hf-to-flax", hf, tmp_path / "flax")
    convert("flax-to-hf", tmp_path / "flax", tmp_path / "back", "--shard-size", "20KB")
    told = capsys.readouterr()
    assert told.err == ""
    assert "flax: 21 tensors, float32, 148 kB in" in told.out
    assert "back: 21 tensors, float32 in 7 files, 148 kB in" in told.out
    assert len(list((tmp_path / "back").glob("*.safetensors"))) == 7


def test_a_training_run_is_converted_from_any_checkpoint(tmp_path, capsys):
    import jax
    from flax import nnx

    from jaxllada.convert import save
    from jaxllada.models.mask_predictor import MaskPredictor
    from jaxllada.train.checkpoint import Checkpoints
    from tests.jax.test_checkpoint import TrainConfig, initial_state, make_optimizer

    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    for step, with_ema in ((1, False), (2, True)):
        model = MaskPredictor(TINY, rngs=jax.random.key(step))
        save(model, tmp_path / f"step-{step}")
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        state = initial_state(params, make_optimizer(TrainConfig()), with_ema=with_ema)
        if with_ema:
            state = dataclasses.replace(state, ema=jax.tree.map(lambda leaf: leaf * 2, params))
        checkpoints.save(step, state, {})
    checkpoints.close()
    TINY.save(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("learning_rate: 0.125\n")

    def converted(name, *flags):
        convert("flax-to-hf", tmp_path / "run", tmp_path / name, *flags)
        return tensors(tmp_path / name)

    assert converted("first", "--step", 1) == tensors(tmp_path / "step-1")
    assert converted("raw", "--average", "false") == tensors(tmp_path / "step-2")
    convert("hf-to-flax", tmp_path / "run", tmp_path / "weights", "--average", "false")
    convert("flax-to-hf", tmp_path / "weights", tmp_path / "again")
    assert tensors(tmp_path / "again") == tensors(tmp_path / "step-2")
    doubled = {n: np.frombuffer(b, k) * 2 for n, (k, _, b) in tensors(tmp_path / "step-2").items()}
    average = converted("average")
    assert all(np.array_equal(np.frombuffer(b, k), doubled[n]) for n, (k, _, b) in average.items())
    card = (tmp_path / "average" / "README.md").read_text()
    for told in ("learning_rate: 0.125", "checkpoint: 2", "averaged_weights: true"):
        assert told in card
    assert "21 tensors, float32, step 2 (averaged) in 1 file, 107 kB" in capsys.readouterr().out
    assert (
        main(["convert", "flax-to-hf", str(tmp_path / "run"), str(tmp_path / "x"), "--step=7"]) == 2
    )
    assert "step=7: no such checkpoint" in capsys.readouterr().err


def test_a_run_whose_checkpoints_are_model_folders_is_converted_too(hf, tmp_path, capsys):
    """As the torch backend writes them: the tokenizer lies beside, not in the checkpoint."""
    run = tmp_path / "run"
    for step in (3, 4):
        folder = write_model(run / "checkpoints" / str(step), read_config(hf), seed=step)
        write_manifest(folder, {"step": step})
    for name, path in side_files(hf).items():
        (run / name).write_bytes(path.read_bytes())
    (run / "config.json").write_bytes((hf / "config.json").read_bytes())
    for way, target in (("flax-to-hf", "hf4"), ("hf-to-flax", "flax4")):
        convert(way, run, tmp_path / target)
        for name, path in side_files(hf).items():
            assert (tmp_path / target / name).read_bytes() == path.read_bytes()
    convert("flax-to-hf", run, tmp_path / "hf3", "--step", "3")
    assert "float32, step 3 in 1 file" in capsys.readouterr().out
    assert tensors(tmp_path / "hf3") == tensors(run / "checkpoints" / "3")
    assert tensors(tmp_path / "hf4") == tensors(run / "checkpoints" / "4")
    convert("flax-to-hf", tmp_path / "flax4", tmp_path / "back4")
    assert tensors(tmp_path / "back4") == tensors(run / "checkpoints" / "4")
    assert "checkpoint: 4" in (tmp_path / "hf4" / "README.md").read_text()
