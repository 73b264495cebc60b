"""Streamed safetensors files are what the safetensors library reads, and survive being stopped."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from jaxllada.common.errors import UserError
from jaxllada.common.weights.pieces import pieces, rows_per_piece
from jaxllada.common.weights.shards import INDEX, SINGLE, Tensor, plan_shards, write_shards

DTYPES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]


def make(name, dtype, shape, seed=0, reads=None):
    """A tensor with random bits (so NaNs and infinities too), and its array."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    array = np.frombuffer(np.random.default_rng(seed).bytes(size), dtype).reshape(shape)

    def read():
        if reads is not None:
            reads.append(name)
        return pieces(array, dtype, rows=2)

    return Tensor(name, dtype, tuple(shape), read), array


def read_back(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@settings(max_examples=40, deadline=None)
@given(
    kinds=st.lists(st.tuples(st.sampled_from(DTYPES), st.integers(1, 7), st.integers(1, 5)),
                   min_size=1, max_size=8),
    shard_bytes=st.integers(1, 300),
)  # fmt: skip
def test_the_library_reads_what_was_streamed(tmp_path_factory, kinds, shard_bytes):
    folder = tmp_path_factory.mktemp("shards")
    made = [make(f"t{i}", d, (r, c), seed=i) for i, (d, r, c) in enumerate(kinds)]
    shards = plan_shards([tensor for tensor, _ in made], shard_bytes)
    told = []
    write_shards(folder, shards, told.append)
    found = read_back(folder)
    assert list(sorted(found)) == sorted(tensor.name for tensor, _ in made)
    assert all(same_bits(found[tensor.name], array) for tensor, array in made)
    total = sum(array.nbytes for _, array in made)
    assert sum(told) >= total
    if len(shards) == 1:
        assert [file.name for file in folder.iterdir()] == [SINGLE]
        return
    index = json.loads((folder / INDEX).read_text())
    assert index["metadata"]["total_size"] == total
    for name, file in index["weight_map"].items():
        with safe_open(folder / file, framework="numpy") as opened:
            assert name in opened.keys()  # noqa: SIM118
    for shard in shards:
        assert shard.nbytes <= shard_bytes or len(shard.tensors) == 1


def test_every_tensor_starts_at_a_multiple_of_its_item_size(tmp_path):
    kinds = [np.float16, np.float32, ml_dtypes.bfloat16, np.float32]
    made = [make(f"t{i}", kind, (3, 1)) for i, kind in enumerate(kinds)]
    write_shards(tmp_path, plan_shards([tensor for tensor, _ in made], 10**6))
    data = (tmp_path / SINGLE).read_bytes()
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    for about in list(table.values())[1:]:
        width = 4 if about["dtype"] == "F32" else 2
        assert about["data_offsets"][0] % width == 0


def test_finished_shards_are_kept_and_an_unfinished_one_has_no_name(tmp_path):
    reads = []
    made = [make(f"t{i}", np.float32, (8, 4), seed=i, reads=reads) for i in range(4)]
    tensors = [tensor for tensor, _ in made]

    def fail():
        reads.append("t2")
        yield np.zeros((2, 4), np.float32)
        raise OSError(28, os.strerror(28))

    broken = [*tensors[:2], Tensor("t2", tensors[2].dtype, (8, 4), fail), tensors[3]]
    with pytest.raises(OSError, match="No space left"):
        write_shards(tmp_path, plan_shards(broken, 128))
    finished = {file.name for file in tmp_path.iterdir()}
    assert finished <= {"model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors"}
    reads.clear()
    told = []
    write_shards(tmp_path, plan_shards(tensors, 128), told.append)
    assert len(reads) == 4 - len(finished)
    assert sum(told) >= 4 * 128
    assert all(same_bits(read_back(tmp_path)[t.name], array) for t, array in made)


def test_a_tensor_that_yields_too_little_is_never_named(tmp_path):
    short = Tensor("t", np.dtype(np.float32), (4, 4), lambda: [np.zeros((3, 4), np.float32)])
    with pytest.raises(AssertionError, match="48 of 64 bytes"):
        write_shards(tmp_path, plan_shards([short], 10**6))
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 600), columns=st.integers(1, 600), transposed=st.booleans(),
    kinds=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)), step=st.integers(1, 700),
)  # fmt: skip
def test_pieces_are_the_array(rows, columns, transposed, kinds, step):
    shape = (columns, rows) if transposed else (rows, columns)
    array = np.random.default_rng(rows).normal(size=shape).astype(kinds[0])
    array = array.T if transposed else array
    cut = list(pieces(array, kinds[1], rows=step))
    assert all(piece.flags.c_contiguous for piece in cut)
    assert same_bits(np.concatenate(cut), np.ascontiguousarray(array).astype(kinds[1]))


def test_what_needs_no_change_is_not_copied():
    array = np.zeros((10, 3), np.float32)
    assert all(np.shares_memory(piece, array) for piece in pieces(array, array.dtype, rows=4))


def test_values_that_do_not_fit_the_new_type_are_refused():
    array = np.array([1.0, 70000.0, np.inf], np.float32)
    with pytest.raises(UserError, match="dtype=float16: w holds 70000, which becomes infinite"):
        list(pieces(array, np.dtype(np.float16), what="w"))
    kept = list(pieces(np.array([np.inf, np.nan], np.float32), np.dtype(np.float16)))
    assert np.isinf(kept[0][0])


@pytest.mark.parametrize(
    ("shape", "itemsize", "limit", "rows"),
    [((126464, 4096), 2, 64 << 20, 7904), ((4096, 12288), 2, 64 << 20, 2048), ((7,), 2, 8, 4),
     ((4, 100), 4, 8, 1), ((5, 3), 4, 10**6, 5)],
)  # fmt: skip
def test_cuts_are_even_powers_of_two(shape, itemsize, limit, rows):
    assert rows_per_piece(shape, itemsize, limit) == rows
