import numpy as np

from jaxllada.common.answers import stops_at
from jaxllada.common.autoregressive import Stops
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.trace import Trace
from tests.word_decoder import EOT, Words

CONFIG = SamplingConfig(steps=8, gen_length=8, block_length=2)
END = 0


def trace_of(tokens, steps):
    order = np.arange(8, dtype=np.int16)[None].repeat(len(tokens), 0)
    order[order >= steps] = -1
    tokens = np.where(order >= 0, tokens, END)
    return Trace(np.zeros((len(tokens), 1), int), tokens, order, order / 8, mask_token_id=END)


def test_rows_are_cut_behind_the_block_in_which_they_stop():
    tokens = np.array([[1, 2, 3, 4, 5, 6, 7, 8], [9, 8, 7, 6, 5, 4, 3, 2]])
    stops = Stops(lambda row: 3 in row, CONFIG, rows=2)
    for steps in (2, 3, 4, 5, 6, 8):
        trace = stops.cut(trace_of(tokens, steps))
        np.testing.assert_array_equal(
            trace.tokens[0], [1, 2, 3, 4, 0, 0, 0, 0][:steps] + [0] * (8 - steps)
        )
        assert stops.is_over == (steps == 8)
    np.testing.assert_array_equal(trace.tokens[1], tokens[1])
    assert (trace.order[0, 4:] == 3).all()


def test_nothing_is_cut_without_a_function():
    stops = Stops(None, CONFIG, rows=1)
    trace = trace_of(np.arange(8)[None], 8)
    assert stops.cut(trace) is trace
    assert not stops.is_over


def test_texts_stop_an_answer_wherever_tokens_begin_and_end():
    should_stop = stops_at(["e two th", "<eot>"], Words())
    assert should_stop([5, 1, 2, 3])
    assert should_stop([5, EOT])
    assert not should_stop([1, 2, 2])
    assert not stops_at([], Words())([1, 2])
