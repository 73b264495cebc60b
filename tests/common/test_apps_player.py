"""The player page, pictures and the verb `play`."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from jaxllada.__main__ import main
from jaxllada.apps.player.page import player_page, track
from jaxllada.apps.player.pictures import ACCENT, MASK, animation, lay_out, sheet
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.engine import Generation
from jaxllada.common.errors import UserError
from jaxllada.common.trace import Trace
from jaxllada.common.trace_text import END, Piece, describe, shown, told
from tests.word_decoder import EOS, Words
from tests.word_decoder import MASK as MASK_ID


class Wicked(Words):
    words = ("zero", "</script><b>", "\u4f60\n", " <!-- @STYLE@", " four", " five")


def described(tokens=(1, 2, 3, EOS, EOS), order=(2, 0, 1, 1, 3), decoder=None):
    trace = Trace(
        prompt=np.array([[EOS, EOS, 4, 5]], np.int32),
        tokens=np.array([tokens], np.int32),
        order=np.array([order], np.int16),
        confidence=np.linspace(0, 1, len(tokens), dtype=np.float32)[None],
        mask_token_id=MASK_ID,
    )
    config = SamplingConfig(steps=4, gen_length=5, block_length=5, stop_at_eos=True)
    done = Generation(list(tokens), trace, 4, 0.25)
    return describe(done, decoder or Words(), config, prompt=[4, 5], model="some/where", seed=3)


def test_a_described_trace_survives_a_file_with_its_text_and_settings(tmp_path):
    trace = described()
    trace.save(tmp_path / "t.npz")
    back = Trace.load(tmp_path / "t.npz")
    assert back.about == trace.about
    assert told(back).prompt == " four five"
    assert "".join(text for text, _ in told(back).pieces) == " one two three" + 2 * END
    assert told(back).end == 3
    assert back.about["settings"] == {
        "steps": 4, "gen_length": 5, "block_length": 5, "temperature": 0.0, "stop_at_eos": True,
    }  # fmt: skip
    assert back.prompt.tolist() == [[4, 5]], "padding on the left belongs to the batch"
    assert back[0].about["rows"] == back.about["rows"]


def test_traces_of_before_are_read_and_say_that_they_hold_no_text(tmp_path):
    trace = described()
    arrays = {name: getattr(trace, name) for name in ("prompt", "tokens", "order", "confidence")}
    np.savez(tmp_path / "old.npz", **arrays, mask_token_id=np.int32(MASK_ID))
    assert Trace.load(tmp_path / "old.npz").num_steps == 4
    assert main(["play", str(tmp_path / "old.npz")]) == 2
    with pytest.raises(UserError, match="holds no text"):
        told(Trace.load(tmp_path / "old.npz"))


def test_halves_of_a_character_appear_when_both_are_there():
    text = told(described(tokens=(1, 20, 21, 2, EOS)))
    assert text.pieces[1] == ("\u00e9", 2)
    whole = shown(text, [True] * 5)
    assert "".join(piece.text for piece in whole) == " one\u00e9 two"
    half = shown(text, [False, True, False, True, True], "_")
    assert [piece.text for piece in half] == ["_", "\ufffd", "_", " two"]


def test_positions_that_were_never_filled_lie_behind_the_answer():
    text = told(described(tokens=(1, 2, MASK_ID, MASK_ID, MASK_ID), order=(0, 1, -1, -1, -1)))
    assert text.end == 2
    assert "".join(piece.text for piece in shown(text, [True] * 5)) == " one two"


def test_an_end_token_behind_half_a_character_is_still_an_end():
    assert told(described(tokens=(20, EOS, 1, 2, 3))).pieces[1] == (END, 1)


def embedded(page):
    return json.loads(re.search(r'id="traces">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_holds_the_traces_whatever_the_model_wrote_and_loads_nothing():
    trace = described(decoder=Wicked())
    page = player_page({"a": trace, "b": described()}, title="5 < 6")
    assert embedded(page)[0]["pieces"][0] == ["</script><b>", 1]
    assert embedded(page)[0]["pieces"][2] == [" <!-- @STYLE@", 1]
    assert embedded(page)[0] == json.loads(json.dumps(track("a", trace)))
    assert page.count("</script>") == 2
    assert not re.search(r"https?://|src=|@import|url\(", page)
    assert "<title>5 &lt; 6</title>" in page
    assert not re.search(r"@(TITLE|SCRIPT|DATA)@", page)


def test_the_page_tells_settings_and_cost():
    facts = dict(embedded(player_page({"a": described()}))[0]["settings"])
    assert facts["model"] == "where"
    assert facts["stop_at_eos"] == "true"
    assert facts["model calls"] == "4"
    assert "seed" not in facts, "nothing was drawn"


def colours(image):
    """Colours of areas, not those of the soft edges of letters."""
    return {c for count, c in image.convert("RGB").getcolors(1 << 24) if count >= 60}


def rgb(text):
    return tuple(bytes.fromhex(text[1:]))


def test_the_animation_goes_from_masks_to_none():
    image = Image.open(io.BytesIO(animation({"a": described()}, 1.0)))
    assert image.n_frames == 5
    assert rgb(MASK) in colours(image)
    assert rgb(ACCENT) not in colours(image)
    image.seek(2)
    assert {rgb(MASK), rgb(ACCENT)} <= colours(image)
    image.seek(4)
    assert rgb(MASK) not in colours(image)


def test_long_runs_leave_steps_out_of_the_animation():
    order = tuple(range(100))
    trace = described(tokens=(1,) * 100, order=order)
    image = Image.open(io.BytesIO(animation({"a": trace}, 1.0)))
    assert image.n_frames == 26


def test_a_sheet_shows_several_moments_of_every_trace():
    one = Image.open(io.BytesIO(sheet({"a": described()}, 1)))
    three = Image.open(io.BytesIO(sheet({"a": described()}, 3)))
    both = Image.open(io.BytesIO(sheet({"a": described(), "b": described()}, 1)))
    assert three.height == 3 * one.height
    assert both.height > one.height
    assert one.width == three.width == both.width


def test_wide_characters_take_two_columns_and_lines_wrap():
    cells = lay_out([Piece("a\u4f60b\nc", (0,), False)], columns=4)
    assert [(c.character, c.column, c.line) for c in cells] == [
        ("a", 0, 0), ("\u4f60", 1, 0), ("b", 3, 0), ("c", 0, 1),
    ]  # fmt: skip
    assert [c.line for c in lay_out([Piece("abcde", (0,), False)], columns=4)] == [0] * 4 + [1]


def test_the_verb_writes_what_the_name_asks_for(tmp_path, capsys):
    for name in ("a", "b"):
        described().save(tmp_path / f"{name}.npz")
    traces = [str(tmp_path / "a.npz"), str(tmp_path / "b.npz")]
    for suffix, start in ((".html", b"<!doctype"), (".gif", b"GIF89a"), (".png", b"\x89PNG")):
        out = tmp_path / f"x{suffix}"
        assert main(["play", *traces, "--output", str(out)]) == 0
        assert out.read_bytes().startswith(start)
    assert len(embedded((tmp_path / "x.html").read_text("utf-8"))) == 2
    capsys.readouterr()
    assert main(["play", traces[0]]) == 0
    assert " one two three" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected play TRACE"),
        (["a.npz", "b.npz", "c.npz"], "3 traces given"),
        (["no.npz"], "trace no.npz does not exist"),
        (["T", "--row", "1"], "holds 1 answers"),
        (["T", "--output", "x.mp4"], "output=x.mp4: expected a name ending in"),
        (["T", "--output", "/nowhere/x.gif"], "its folder does not exist"),
        (["T", "--frames", "0"], "frames=0"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, capsys):
    described().save(tmp_path / "t.npz")
    given = [str(tmp_path / "t.npz") if word == "T" else word for word in arguments]
    assert main(["play", *given]) == 2
    assert message in capsys.readouterr().err
