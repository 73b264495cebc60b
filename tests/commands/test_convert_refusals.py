"""What the verb `convert` refuses: one line that names it, and nothing is written."""

import dataclasses
import shutil

import numpy as np
import pytest

from jaxllada.__main__ import main
from tests.commands.converted import TINY, convert, names, snapshot, tensors, write_model


def test_a_tokenizer_that_does_not_fit_is_refused_before_anything_is_written(
    tmp_path, tokenizer, capsys
):
    source = write_model(tmp_path / "hf")
    tokenizer.save(source)
    assert main(["convert", "flax-to-hf", str(source), str(tmp_path / "out")]) == 2
    assert "tokenizer" in capsys.readouterr().err
    assert names(tmp_path) == ["hf"]


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
