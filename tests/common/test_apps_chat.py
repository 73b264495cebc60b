import io
import json

import numpy as np
import pytest
from rich.console import Console

from jaxllada.apps.chat import Chat
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.engine import Generation, Update, check_prompts
from jaxllada.common.trace import Trace
from jaxllada.common.trace_text import told
from tests.word_decoder import EOS, MASK, Words

CONFIG = SamplingConfig(steps=4, gen_length=4, block_length=4)


class ChatWords(Words):
    """A conversation is one token per message, and one for the answer's header."""

    def chat(self, messages, add_generation_prompt=True):
        return [len(messages) % 6] * (len(messages) + 1)


class EchoEngine:
    """Commits a fixed answer from its end to its beginning and remembers what it was asked."""

    config = ModelConfig(
        rope=True, activation_type="silu", block_type="llama", max_sequence_length=12,
        vocab_size=100, embedding_size=100, mask_token_id=MASK, eos_token_id=EOS,
        pad_token_id=EOS,
    )  # fmt: skip

    def __init__(self, answer=(1, 2, 3, EOS), order=(3, 2, 1, 0)):
        self.answer, self.order, self.asked = np.array([answer]), np.array([order]), []

    def generate(self, prompts, config, seed=0, on_update=None, *, first_row=0):
        check_prompts(prompts, config, self.config)
        self.asked.append((list(prompts[0]), seed))
        trace = Trace(np.array(prompts), self.answer, self.order, np.ones_like(self.answer), MASK)
        for step in range(1, 5):
            if on_update is not None:
                on_update(Update(trace.frame(step), step, 4))
        return [Generation(self.answer[0].tolist(), trace, 4, 0.1)]


def converse(*lines, engine=None, terminal=False, **options):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80, highlight=False)
    chat = Chat(engine or EchoEngine(), ChatWords(), CONFIG, console=console, **options)
    chat.run(lines)
    return chat, out.getvalue()


def test_turns_build_up_a_conversation():
    engine = EchoEngine()
    chat, text = converse("hello\n", "", "again\n", engine=engine, system="be brief")
    assert [message["role"] for message in chat.messages] == [
        "system",
        *["user", "assistant"] * 2,
    ]
    assert chat.messages[2]["content"] == " one two three"
    assert [prompt for prompt, _ in engine.asked] == [[2] * 3, [4] * 5]
    assert text == " one two three\n" * 2


def test_every_turn_draws_other_noise():
    engine = EchoEngine()
    converse("a", "b", "c", engine=engine, seed=7)
    assert len({seed for _, seed in engine.asked}) == 3


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 1, 3)])
def test_in_a_pipe_the_settled_part_is_written_once(order):
    _, text = converse("hi", engine=EchoEngine(order=order))
    assert text == " one two three\n"


def test_halves_of_a_character_wait_for_each_other():
    engine = EchoEngine(answer=(1, 20, 21, EOS), order=(0, 1, 2, 3))
    _, text = converse("hi", engine=engine)
    assert text == " oneé\n"


def test_in_a_terminal_masks_fill_in():
    _, text = converse("hi", terminal=True)
    assert "░" in text
    assert " one two three" in text


def test_reset_keeps_only_the_system_message():
    chat, text = converse("hi", "/reset", system="be brief")
    assert chat.messages == [{"role": "system", "content": "be brief"}]
    assert "starts over" in text


def test_saved_conversations_are_json_messages(tmp_path):
    path = tmp_path / "talk with a space.json"
    chat, _ = converse("hi", f"/save {path}")
    assert json.loads(path.read_text())["messages"] == chat.messages
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/save", "/save needs the name of a file"),
        (
            "/save /nowhere/else/file",
            "/save /nowhere/else/file: the folder /nowhere/else does not exist",
        ),
        ("/trace", "/trace needs the name of a file"),
        ("/trace now.npz", "/trace: there is no answer yet"),
        ("/rest", "/rest is not a command; did you mean '/reset'?"),
        ("/42", "/42 is not a command; /help lists them"),
    ],
)
def test_wrong_commands_are_told_and_the_conversation_goes_on(line, message):
    chat, text = converse(line, "hi")
    assert f"error: {message}" in text
    assert len(chat.messages) == 2


def test_a_turn_beyond_the_context_leaves_the_conversation_as_it_was():
    chat, text = converse(*["more"] * 5)
    # 4 messages and the new one are 6 tokens; with the answer 10. The next turn would need 12, the
    # one after it 14, and max_sequence_length is 12.
    assert "max_sequence_length=12" in text
    assert len(chat.messages) == 8
    assert chat.messages[-1]["role"] == "assistant"


def test_quit_ends_and_help_lists_every_command():
    chat, text = converse("/help", "/quit", "hi")
    assert chat.messages == []
    for command in ("/help", "/reset", "/save", "/quit"):
        assert command in text


def test_the_record_of_an_answer_can_be_saved_and_played(tmp_path):
    path = tmp_path / "t.npz"
    chat, text = converse("hi", f"/trace {path}", model="some/model")
    assert "Saved 4 steps" in text
    trace = Trace.load(path)
    assert "".join(part for part, _ in told(trace).pieces).startswith(" one two three")
    assert trace.about["model"] == "some/model"
    assert chat.trace.about == trace.about


def test_every_turn_can_leave_its_record(tmp_path):
    converse("hi", "again", traces=str(tmp_path / "turn.npz"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["turn-1.npz", "turn-2.npz"]
    assert Trace.load(tmp_path / "turn-2.npz").prompt.tolist() == [[3] * 4]
