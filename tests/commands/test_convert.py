"""The verb `convert`: every bit both ways, whatever stops it, and one clear error."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllada.__main__ import main
from jaxllada.common.config.opening import read_config
from jaxllada.common.config.presets import PRESETS
from jaxllada.common.manifest import write_manifest
from jaxllada.common.tokenizer import Tokenizer
from jaxllada.common.weights.folder import AUTO_MAP
from jaxllada.common.weights.index import WeightFolder
from jaxllada.common.weights.layouts import LAYOUTS
from jaxllada.common.weights.shards import Tensor, plan_shards, write_shards
from jaxllada.common.weights.side_files import side_files
from tests.jax.golden import DENSE, VARIANT_CONFIGS, write_variant

ROOT = Path(__file__).parents[2]
TINY = PRESETS["tiny"]
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def write_model(folder, config=TINY, *, layout="llada", dtype="float32", shard_bytes=10**9, seed=0):
    """Writes a model folder with random weights, without making a model."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    kind = DTYPES[dtype]
    tensors = []
    for stored in LAYOUTS[layout].tensors(config):
        array = rng.standard_normal(stored.shape, np.float32).astype(kind)
        tensors.append(Tensor(stored.name, kind, stored.shape, lambda array=array: [array]))
    write_shards(folder, plan_shards(tensors, shard_bytes))
    (folder / "config.json").write_text(json.dumps(LAYOUTS[layout].write_config(config)))
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["one two three four five six seven eight nine ten"] * 3, 280)


@pytest.fixture
def hf(tmp_path, tokenizer):
    """A released folder in several shards, with a tokenizer that fits."""
    ids = {"mask": tokenizer.mask_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    config = dataclasses.replace(
        TINY, vocab_size=280, embedding_size=288, **{f"{k}_token_id": v for k, v in ids.items()}
    )
    folder = write_model(tmp_path / "hf", config, shard_bytes=20_000)
    tokenizer.save(folder)
    (folder / "generation_config.json").write_bytes(b'{"eos_token_id":  1}\r\n')
    return folder


def convert(*arguments):
    assert main(["convert", *map(str, arguments)]) == 0


def tensors(folder):
    files = WeightFolder(folder)
    return {name: (files.dtype(name), files.shape(name), files.read(name).tobytes())
            for name in files.names}  # fmt: skip


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def snapshot(folder):
    """Every file and its bytes, but not when it was written."""
    skipped = ("_CHECKPOINT_METADATA", "manifest.json")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in skipped
    }


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def with_code(config):
    """The config.json of an exported folder of the `llada` layout names its modeling file."""
    return {"auto_map": AUTO_MAP, **config} if config["model_type"] == "llada" else config


def assert_same_model(exported, source):
    assert tensors(exported) == tensors(source)
    assert config_of(exported) == with_code(config_of(source))


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


def test_a_tokenizer_that_does_not_fit_is_refused_before_anything_is_written(
    tmp_path, tokenizer, capsys
):
    source = write_model(tmp_path / "hf")
    tokenizer.save(source)
    assert main(["convert", "flax-to-hf", str(source), str(tmp_path / "out")]) == 2
    assert "tokenizer" in capsys.readouterr().err
    assert names(tmp_path) == ["hf"]


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


# Runs a conversion in a forked process that is killed at its n-th write, for every n; then checks
# that nothing is there, and goes on. Prints how many writes there were.
KILLED = """
    import os, signal, sys
    from pathlib import Path
    from jaxllada.__main__ import main
    from jaxllada import orbax_files, orbax_source, stream
    from jaxllada.common.weights import export
    from jaxllada.common.errors import UserError
    from jaxllada.common.weights.opening import open_folder

    source, target, *arguments = sys.argv[1:]
    orbax_files._SMALL = 0
    target = Path(target)
    work = target.with_name(f".{target.name}.partial")

    def accepted(folder):
        for opened in (open_folder, orbax_source.OrbaxSource):
            try:
                return opened(folder)
            except UserError:
                pass

    def attempt(kill_at):
        child = os.fork()
        if child == 0:
            write, replace, count = os.write, os.replace, 0
            def dying(call):
                def wrapped(*arguments):
                    nonlocal count
                    count += 1
                    if count == kill_at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return call(*arguments)
                return wrapped
            os.write, os.replace = dying(os.write), dying(os.replace)
            sys.stdout = sys.stderr = open(os.devnull, "w")
            os._exit(main(["convert", *arguments, source, str(target)]))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def weights(folder):
        # A name that appears is final: its inode must survive the next attempt.
        files = (*folder.rglob("c.*"), *folder.glob("*.safetensors"))
        return {file: file.stat().st_ino for file in files}

    number, kills, kept = 1, 0, {}
    while True:
        code = attempt(number)
        if code == 0:
            break
        assert code == -signal.SIGKILL, code
        kills += 1
        assert not target.exists()
        assert accepted(work) is None, sorted(work.rglob("*"))
        now = weights(work)
        assert kept.items() <= now.items()
        kept = now
        number += 1
    assert not work.exists()
    assert accepted(target)
    print(kills)
"""


@pytest.mark.parametrize("direction", ["hf-to-flax", "flax-to-hf"])
def test_a_kill_at_any_write_leaves_nothing_and_loses_nothing(hf, tmp_path, direction):
    convert("hf-to-flax", hf, tmp_path / "flax")
    source = hf if direction == "hf-to-flax" else tmp_path / "flax"
    flags = [] if direction == "hf-to-flax" else ["--shard_size", "20KB"]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), source, tmp_path / "out", direction,
         *flags],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 6  # it was killed, and went on, that often
    if direction == "flax-to-hf":
        assert tensors(tmp_path / "out") == tensors(hf)
    else:
        convert("flax-to-hf", tmp_path / "out", tmp_path / "back")
        assert tensors(tmp_path / "back") == tensors(hf)


def fail_after(monkeypatch, count):
    write, calls = os.write, []

    def limited(handle, data):
        calls.append(handle)
        if len(calls) > count:
            raise OSError(28, os.strerror(28))
        return write(handle, data)

    monkeypatch.setattr(os, "write", limited)


@pytest.mark.parametrize("direction", ["hf-to-flax", "flax-to-hf"])
def test_a_full_disk_is_one_clear_error_and_the_rest_is_resumed(
    hf, tmp_path, capsys, monkeypatch, direction
):
    convert("hf-to-flax", hf, tmp_path / "flax")
    source = hf if direction == "hf-to-flax" else tmp_path / "flax"
    arguments = ["convert", direction, str(source), str(tmp_path / "out")]
    flags = [] if direction == "hf-to-flax" else ["--shard_size", "20KB"]
    capsys.readouterr()
    with monkeypatch.context() as patch:
        fail_after(patch, 8)
        assert main([*arguments, *flags]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "out: the disk is full; what is finished is kept in" in told[0]
    assert not (tmp_path / "out").exists()
    assert main([*arguments, *flags]) == 0
    assert "resuming from" in capsys.readouterr().err
    assert names(tmp_path) == ["flax", "hf", "out"]


def test_another_source_or_setting_is_not_mixed_into_what_was_begun(
    hf, tmp_path, capsys, monkeypatch
):
    for change in ("touched", "dtype"):
        with monkeypatch.context() as patch:
            fail_after(patch, 6)
            assert main(["convert", "hf-to-flax", str(hf), str(tmp_path / "out")]) == 2
        if change == "touched":
            os.utime(next(hf.glob("*.safetensors")))
        flags = ["--dtype", "float16"] if change == "dtype" else []
        capsys.readouterr()
        convert("hf-to-flax", hf, tmp_path / "out", *flags)
        assert "resuming" not in capsys.readouterr().err
        shutil.rmtree(tmp_path / "out")


def pickled(hf, tmp):
    for file in hf.glob("*.safetensors*"):
        file.unlink()
    (hf / "pytorch_model.bin").write_bytes(b"\x80")


def truncated(hf, tmp):
    file = max(hf.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-7])


def lost_shard(hf, tmp):
    max(hf.glob("*.safetensors")).unlink()


def no_config(hf, tmp):
    (hf / "config.json").unlink()


def taken(hf, tmp):
    (tmp / "out").mkdir()
    (tmp / "out" / "thesis.txt").write_text("precious")


def taken_by_a_file(hf, tmp):
    (tmp / "out").write_text("precious")


def too_large(hf, tmp):
    shutil.rmtree(hf)
    write_model(hf)
    file = hf / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = np.float32(1e6).tobytes()
    file.write_bytes(data)


def nothing(hf, tmp):
    pass


@pytest.mark.parametrize(
    ("harm", "flags", "told"),
    [
        (pickled, [], "pickled weights"),
        (truncated, [], "is not a complete safetensors file"),
        (lost_shard, [], "is missing, but model.safetensors.index.json names it"),
        (no_config, [], "config.json: no such file"),
        (taken, [], "out: exists and is not empty; choose another name or add --overwrite"),
        (taken_by_a_file, ["--overwrite"], "out: is a file"),
        (too_large, ["--dtype", "float16"], "dtype=float16: ff_out.weight holds 1e+06"),
        (nothing, ["--layout", "llama"], "layout=llama: is only for flax-to-hf"),
        (nothing, ["--shard_size", "1GB"], "shard_size=1GB: is only for flax-to-hf"),
        (nothing, ["--step", "3"], "step=3"),
        (nothing, ["--dtype", "float64"], "dtype=float64: expected one of"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_line_and_nothing_is_written(
    hf, tmp_path, capsys, harm, flags, told
):
    harm(hf, tmp_path)
    before = snapshot(tmp_path)
    assert main(["convert", "hf-to-flax", str(hf), str(tmp_path / "out"), *flags]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert told in lines[0]
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--step", "3"], "step=3"),
        (["--average", "true"], "average=true"),
        (["--shard_size", "some"], "shard_size=some: expected a size such as 5GB"),
        (["--layout", "lama"], "layout=lama: expected"),
    ],
)
def test_a_mistake_on_the_way_back_is_told_in_one_line(hf, tmp_path, capsys, flags, told):
    before = snapshot(tmp_path)
    assert main(["convert", "flax-to-hf", str(hf), str(tmp_path / "out"), *flags]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert told in lines[0]
    assert snapshot(tmp_path) == before


def test_what_a_layout_cannot_express_is_refused_before_anything_is_written(tmp_path, capsys):
    config = dataclasses.replace(TINY, attention_layer_norm=True)
    source = write_model(tmp_path / "hf", config)
    arguments = ["convert", "flax-to-hf", str(source), str(tmp_path / "out"), "--layout", "llama"]
    assert main(arguments) == 2
    assert "attention_layer_norm" in capsys.readouterr().err
    assert names(tmp_path) == ["hf"]


def test_the_source_is_never_replaced(hf, tmp_path, capsys):
    before = snapshot(tmp_path)
    for target in (hf, tmp_path, tmp_path / "hf" / ".." / "hf"):
        assert main(["convert", "hf-to-flax", str(hf), str(target), "--overwrite"]) == 2
        assert "holds the weights that are to be converted" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_an_old_result_is_replaced_on_request(hf, tmp_path):
    taken(hf, tmp_path)
    convert("hf-to-flax", hf, tmp_path / "out", "--overwrite")
    convert("flax-to-hf", hf, tmp_path / "fresh")
    convert("flax-to-hf", tmp_path / "out", tmp_path / "out2")
    assert tensors(tmp_path / "out2") == tensors(tmp_path / "fresh")
    assert not (tmp_path / "out" / "thesis.txt").exists()


MEASURED = """
    import sys
    from jaxllada.commands.bench_convert import work
    work(*sys.argv[1:])
"""


def test_memory_does_not_grow_with_the_model(tmp_path):
    """200 MB of weights pass through a process that never holds more than a few pieces."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process is known on Linux only")
    width = 1024
    config = dataclasses.replace(
        TINY, d_model=width, n_heads=8, n_kv_heads=8, n_layers=10, mlp_hidden_size=2 * width
    )
    source = write_model(tmp_path / "hf", config, dtype="bfloat16", shard_bytes=10**8)
    assert sum(file.stat().st_size for file in source.glob("*.safetensors")) > 200e6
    for direction, begin, end in (
        ("hf-to-flax", source, tmp_path / "flax"), ("flax-to-hf", tmp_path / "flax", tmp_path / "b")
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(MEASURED), direction, begin, end],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        peak = json.loads(done.stdout.splitlines()[-1])["peak_bytes"]
        # Two of the largest tensors (4 MB) and what Python and tensorstore need beside.
        assert peak < 48e6, direction
    assert tensors(tmp_path / "b") == tensors(source)
