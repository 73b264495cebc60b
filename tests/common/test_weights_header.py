"""A damaged weight file is refused before anything is read, naming file and tensor."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from jaxllada.common.errors import UserError
from jaxllada.common.weights.header import read_header
from jaxllada.common.weights.index import WeightFolder
from tests.model_folders import write_shards

F32 = {"dtype": "F32", "shape": [2, 3]}


def write(path, table, data, *, header=None):
    text = json.dumps(table).encode() if header is None else header
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin, end, **other):
    return {**F32, "data_offsets": [begin, end], **other}


@pytest.mark.parametrize(
    ("table", "size", "message"),
    [
        ({"a": entry(0, 24), "b": entry(24, 48)}, 40, "not a complete .*: b ends at byte"),
        ({"a": entry(0, 24), "b": entry(20, 44)}, 44, "b overlaps a"),
        ({"a": entry(0, 24), "b": entry(32, 56)}, 56, "b leaves a gap after a"),
        ({"a": entry(8, 32)}, 32, "a leaves a gap after the header"),
        ({"a": entry(0, 24)}, 30, "6 bytes follow the last tensor"),
        ({"a": entry(0, 20)}, 20, r"a is F32 of shape \(2, 3\), but its offsets .* hold 20 bytes"),
        ({"a": entry(24, 0)}, 24, "a is F32"),
        ({"a": entry(0, 24, shape=[-2, -3])}, 24, "entry of a is broken: sizes and offsets"),
        ({"a": entry(0, 24, shape=[2, 3.0])}, 24, "entry of a is broken"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "entry of a is broken: 'data_offsets'"),
        ({"a": 3}, 8, "entry of a is broken"),
        ([], 0, "its header is no JSON object"),
    ],
)
def test_offsets_that_cannot_be_are_refused_with_the_name(tmp_path, table, size, message):
    path = write(tmp_path / "x.safetensors", table, bytes(size))
    with pytest.raises(UserError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a complete safetensors file: 0 bytes"),
        (b"\x10\0\0\0\0\0\0", "not a complete safetensors file: 7 bytes"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "its header would take 1152921504606846976"),
        ((4).to_bytes(8, "little") + b"\xff\xfe{}", "its header is no JSON"),
        ((2).to_bytes(8, "little") + b"{]", "its header is no JSON"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_header(path)


def test_two_tensors_of_one_name_are_refused(tmp_path):
    one = json.dumps(entry(0, 24))
    text = f'{{"a": {one}, "a": {one}}}'.encode()
    path = write(tmp_path / "x.safetensors", None, bytes(24), header=text)
    with pytest.raises(UserError, match="a is there twice"):
        read_header(path)


def test_a_missing_file_is_told_with_the_reason(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_header(tmp_path / "x.safetensors")


ARRAYS = st.dictionaries(
    st.text("abc.", min_size=1, max_size=5),
    st.tuples(
        st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16]),
        st.lists(st.integers(0, 4), max_size=3),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(arrays=ARRAYS, seed=st.integers(0, 99))
def test_views_equal_what_the_safetensors_library_wrote(tmp_path_factory, arrays, seed):
    folder = tmp_path_factory.mktemp("weights")
    rng = np.random.default_rng(seed)
    stored = {
        name: np.frombuffer(rng.bytes(int(np.prod(shape)) * np.dtype(kind).itemsize), kind)
        .reshape(shape)
        .copy()
        for name, (kind, shape) in arrays.items()
    }
    save_file(stored, folder / "model.safetensors")
    files = WeightFolder(folder)
    assert set(files.names) == stored.keys()
    for name, array in stored.items():
        view = files.read(name)
        assert (files.shape(name), files.dtype(name)) == (array.shape, array.dtype)
        assert view.tobytes() == array.tobytes()
        assert not view.flags.owndata or not view.size
        assert not view.flags.writeable or not view.size
        if array.ndim and len(array) > 1:
            assert files.read(name, (1, len(array))).tobytes() == array[1:].tobytes()


@pytest.fixture
def sharded(tmp_path):
    weights = {name: np.full((2, 2), i, np.float32) for i, name in enumerate("abcd")}
    write_shards(tmp_path, weights, 2)
    return tmp_path


def test_a_tensor_in_two_shards_is_refused(sharded):
    files = sorted(sharded.glob("*.safetensors"))
    save_file({"b": np.ones(1, np.float32), "a": np.ones(1, np.float32)}, files[1])
    with pytest.raises(UserError, match="a is in both model-00001-of.* and model-00002-of"):
        WeightFolder(sharded)


def test_an_index_with_a_path_is_refused(sharded):
    index = sharded / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"]["a"] = "../model-00001-of-00002.safetensors"
    index.write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"a points to '\.\./model-00001"):
        WeightFolder(sharded)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": []}', "{}"])
def test_an_index_without_a_map_is_refused(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match="has no readable weight_map"):
        WeightFolder(sharded)


def test_a_tensor_of_another_shard_than_the_index_says_is_named(sharded):
    index = sharded / "model.safetensors.index.json"
    table = json.loads(index.read_text())["weight_map"]
    table["a"], table["b"] = table["b"], table["a"]
    index.write_text(json.dumps({"weight_map": table}))
    with pytest.raises(UserError, match=r"a should be in model-00002-of-00002.safetensors"):
        WeightFolder(sharded)


def test_a_type_that_no_weight_has_is_refused_when_it_is_asked_for(tmp_path):
    save_file({"ids": np.arange(3), "w": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    files = WeightFolder(tmp_path)
    assert files.kind("ids") == "I64"
    assert files.read("w").tolist() == [1, 1]
    with pytest.raises(UserError, match=r"ids is stored as I64, expected F32, F16, BF16"):
        files.read("ids")
