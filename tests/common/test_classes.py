"""Classes of answer tokens: content, the EOS that ends it, and the padding behind."""

import numpy as np
import pytest

from jaxllada.common.data.batches import BatchSource
from jaxllada.common.data.classes import NAMES, token_classes
from jaxllada.common.data.rows import RaggedRows, Row
from jaxllada.common.run.metrics import BINS, Window
from tests.common.sft_sums import Counted, Step

EOS = 0


@pytest.mark.parametrize(
    ("tokens", "classes"),
    [
        ([5, 6, 0, 0, 0], [0, 0, 1, 2, 2]),
        ([5, 6, 7], [0, 0, 0]),
        ([5, 6, 0], [0, 0, 1]),
        ([5, 0, 6, 0, 0], [0, 0, 0, 1, 2]),  # an EOS inside an answer is content
        ([0, 0], [1, 2]),
    ],
)
def test_the_end_of_a_row_begins_with_its_first_closing_eos(tokens, classes):
    assert token_classes(np.array(tokens), EOS).tolist() == classes


def test_answers_have_classes_and_text_has_none():
    rows = RaggedRows([Row(np.array([5, 6, 7, EOS], np.int32), np.arange(4) > 0)] * 2)
    settings = dict(seed=0, micro_batch=1, accumulation=2, mask_id=99, pad_id=EOS, max_length=8)
    batch = BatchSource(rows, pad_to_multiple=8, **settings).batch(0)
    assert batch.classes is not None
    assert batch.classes.shape == batch.tokens.shape
    assert batch.classes.dtype == np.int8
    assert batch.classes[0, 0].tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    text = BatchSource(np.full((4, 8), 5), **settings).batch(0)
    assert text.classes is None


def test_lines_of_the_log_tell_classes_apart():
    window = Window()
    window.add(Step(classes=Counted(nll=[6.0, 1.0, 0.0], correct=[1, 1, 0], masked=[4, 2, 0])))
    window.add(Step(classes=Counted(nll=[2.0, 1.0, 0.0], correct=[1, 0, 0], masked=[4, 2, 0],
                                    ended=[2, 0, 0])))  # fmt: skip
    state = window.state()
    again = Window()
    again.load(state)
    line = window.close()
    assert line == again.close()
    assert [line[f"{name}_nll"] for name in NAMES] == [1.0, 0.5, None]
    assert [line[f"{name}_accuracy"] for name in NAMES] == [0.25, 0.25, None]
    assert line["content_as_eos"] == 0.25
    window.add(Step(classes=None))
    assert not {f"{name}_nll" for name in NAMES} & window.close().keys()
    assert len(line["nll_by_rate"]) == BINS
