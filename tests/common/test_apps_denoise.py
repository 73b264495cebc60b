import io

import numpy as np
import pytest
from rich.console import Console

from jaxllada.apps.denoise import play, render
from jaxllada.common.answers import pieces, settled, until_end
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.engine import Generation
from jaxllada.common.trace import GIVEN, Trace
from jaxllada.common.trace_text import describe
from tests.word_decoder import EOS, EOT, MASK, Words


def trace_of(tokens, order, confidence):
    trace = Trace(
        prompt=np.zeros((1, 2), np.int32),
        tokens=np.array([tokens], np.int32),
        order=np.array([order], np.int16),
        confidence=np.array([confidence], np.float32),
        mask_token_id=MASK,
    )
    done = Generation(list(tokens), trace, trace.num_steps, 0.1)
    return describe(done, Words(), SamplingConfig(), prompt=[1, 2])


TRACE = trace_of([1, 2, 3, EOS, EOS], [2, 0, 1, 1, 3], [0.9, 0.5, 0.1, 1, 1])


def test_without_a_terminal_frames_are_plain_text():
    out = io.StringIO()
    play(TRACE, console=Console(file=out, width=60))
    lines = out.getvalue().splitlines()
    assert lines[0] == "step 0/4"
    assert lines[1] == "___"
    assert lines[3] == "_ two_"
    assert lines[-1] == " one two three"
    assert "\x1b" not in out.getvalue()


def test_in_a_terminal_every_step_is_shown_in_colour():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=60, color_system="truecolor")
    play(TRACE, console=console, seconds=0.0)
    for step in range(5):
        assert f"step {step}/4" in out.getvalue()
    assert "\x1b[" in out.getvalue()


def test_colours_follow_confidence_and_the_newest_tokens_are_underlined():
    styles = {span.style for span in render(TRACE, 2).spans}
    assert styles == {"grey50", "dark_orange", "red underline"}
    assert render(TRACE, 4).plain == " one two three"
    assert {span.style for span in render(TRACE, 3).spans} == {
        "green underline",
        "dark_orange",
        "red",
    }


def test_tokens_given_with_the_prompt_are_there_from_the_start():
    trace = trace_of([1, 2, 3, EOS, EOS], [GIVEN, 0, GIVEN, 1, 1], [0, 0.9, 0, 1, 1])
    text = render(trace, 0)
    assert text.plain == " one\u2591 three"
    assert [span.style for span in text.spans] == ["cyan", "grey50", "cyan"]


def test_characters_of_several_tokens_stay_whole():
    parts = pieces([1, 20, 21, 2], Words(), "_")
    assert [part.text for part in parts] == [" one", "é", " two"]
    assert parts[1].positions == (1, 2)
    # With its second half still masked, the first cannot be shown.
    assert [part.text for part in pieces([20, MASK], Words(), "_")] == ["�", "_"]


@pytest.mark.parametrize(
    ("tokens", "kept", "final"),
    [
        ([1, 2, EOS, 3], [1, 2], [1, 2]),
        ([1, MASK, EOT, 3], [1, MASK], [1]),
        ([EOS], [], []),
        ([1, 2], [1, 2], [1, 2]),
        ([], [], []),
    ],
)
def test_answers_end_at_the_first_end_token_and_settle_up_to_the_first_mask(tokens, kept, final):
    assert until_end(tokens, Words()) == kept
    assert settled(tokens, Words()) == final
