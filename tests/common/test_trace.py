import numpy as np
import pytest

from jaxllada.common.errors import UserError
from jaxllada.common.trace import Trace

MASK = 9


@pytest.fixture
def trace():
    return Trace(
        prompt=np.array([[1, 2], [0, 2]], np.int32),
        tokens=np.array([[3, 4, 5, 6], [7, MASK, 1, 2]], np.int32),
        order=np.array([[2, 0, 1, 1], [0, -1, 1, 0]], np.int16),
        confidence=np.array([[0.5, 0.9, 0.25, 1], [0.1, 0, 0.3, 0.2]], np.float32),
        mask_token_id=MASK,
    )


def test_frames_show_each_token_from_its_step_on(trace):
    frames = list(trace.frames())
    np.testing.assert_array_equal(frames[0], np.full((2, 4), MASK))
    np.testing.assert_array_equal(frames[1], [[MASK, 4, MASK, MASK], [7, MASK, MASK, 2]])
    np.testing.assert_array_equal(frames[2], [[MASK, 4, 5, 6], [7, MASK, 1, 2]])
    np.testing.assert_array_equal(frames[3], trace.tokens)
    assert len(frames) == trace.num_steps + 1 == 4


@pytest.mark.parametrize("row", [0, 1, -1])
def test_one_row_is_a_trace(trace, row):
    one = trace[row]
    assert len(one) == 1
    np.testing.assert_array_equal(one.tokens[0], trace.tokens[row])
    np.testing.assert_array_equal(one.prompt[0], trace.prompt[row])


def test_saved_traces_come_back_equal(trace, tmp_path):
    trace.save(tmp_path / "trace.npz")
    back = Trace.load(tmp_path / "trace.npz")
    for name in ("prompt", "tokens", "order", "confidence"):
        before, after = getattr(trace, name), getattr(back, name)
        np.testing.assert_array_equal(before, after)
        assert before.dtype == after.dtype
    assert back.mask_token_id == MASK
    assert [path.name for path in tmp_path.iterdir()] == ["trace.npz"]


@pytest.mark.parametrize("content", [b"", b"not a trace", None])
def test_what_is_no_trace_is_refused_by_name(content, tmp_path):
    path = tmp_path / "other.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"other\.npz"):
        Trace.load(path)


def test_an_array_file_without_the_right_names_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", tokens=np.zeros(3))
    with pytest.raises(UserError, match="not a sampling trace"):
        Trace.load(tmp_path / "other.npz")
