"""The verbs `sample` and `chat` on a small model folder, run as a user runs them."""

import io
import sys

import jax
import pytest

from jaxllada import convert
from jaxllada.__main__ import main
from jaxllada.common.config.presets import PRESETS
from jaxllada.common.tokenizer import Tokenizer
from jaxllada.common.trace import Trace
from jaxllada.common.trace_text import shown, told
from jaxllada.models.mask_predictor import MaskPredictor
from tests.jax.tiny_run import make_config, make_rows, run_training

PROMPT = "the cat sat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import dataclasses

    path = tmp_path_factory.mktemp("model")
    texts = ["the cat sat on the mat and the dog sat on the log"] * 20
    tokenizer = Tokenizer.train(texts, 280, path)
    rows = tokenizer.vocab_size
    config = dataclasses.replace(
        PRESETS["tiny"], vocab_size=rows, embedding_size=rows, mask_token_id=tokenizer.mask_id,
        eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    convert.save(MaskPredictor(config, rngs=jax.random.key(0)), path)
    return path


@pytest.fixture
def run(folder, capsys):
    def run(verb, *arguments):
        code = main([verb, "--model_name_or_path", str(folder), *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


SHORT = ("--gen_length", 8, "--block_length", 4, "--steps", 4)


def test_sample_continues_the_prompt_on_stdout(run):
    code, out, err = run("sample", "--prompt", PROMPT, *SHORT)
    assert code == 0
    assert out.startswith(PROMPT)
    assert "tokens/s" in err


@pytest.mark.parametrize("batch_size", [1, 3])
def test_samples_do_not_depend_on_the_batch_size(run, batch_size):
    arguments = ("--prompt", PROMPT, "--num_samples", 4, "--temperature", 1.0, *SHORT)
    _, one, _ = run("sample", *arguments, "--batch_size", batch_size)
    _, other, _ = run("sample", *arguments, "--batch_size", 8)
    assert one == other
    answers = one.split("--- ")[1:]
    assert [answer[0] for answer in answers] == list("1234")
    assert len({answer[1:] for answer in answers}) > 1


def test_texts_stop_an_answer_and_are_cut_off(run):
    arguments = ("--prompt", PROMPT, *SHORT, "--gen_length", 16, "--steps", 8)
    _, full, told_full = run("sample", *arguments)
    answer = full.removeprefix(PROMPT).rstrip("\n")
    stop = answer[1:3]
    code, out, told_short = run("sample", *arguments, "--stop", stop)
    assert code == 0
    assert out == PROMPT + answer[: answer.index(stop)] + "\n"
    calls = [int(text.split(" model calls")[0].split()[-1]) for text in (told_full, told_short)]
    assert calls[1] < calls[0]
    code, _, err = run("sample", *arguments, "--stop", "['', 'a']")
    assert (code, "holds an empty text" in err) == (2, True)


@pytest.mark.parametrize("prompt", ["the cat, the dog", "[1, 2]", "7", "null", "a: b ", "- x"])
def test_any_text_is_a_prompt(run, prompt):
    code, out, _ = run("sample", f"--prompt={prompt}", *SHORT)
    assert code == 0
    assert out.startswith(prompt)


def test_prompts_can_come_from_a_file_or_not_at_all(run, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("the dog\n\nthe log on\n")
    _, out, _ = run("sample", "--prompts_file", file, *SHORT)
    assert "--- 1\nthe dog" in out
    assert "--- 2\nthe log on" in out
    code, _, _ = run("sample", *SHORT)
    assert code == 0


def test_trace_and_playback_show_the_same_run(run, tmp_path):
    file = tmp_path / "trace.npz"
    _, out, _ = run("sample", "--prompt", PROMPT, *SHORT, "--trace", file, "--animate")
    trace = Trace.load(file)
    assert trace.tokens.shape == (1, 8)
    assert f"step {trace.num_steps}/{trace.num_steps}" in out


def test_the_chat_template_is_used_when_asked_for(run, folder, tmp_path):
    run("sample", "--prompt", PROMPT, "--chat", *SHORT, "--trace", tmp_path / "chat.npz")
    tokenizer = Tokenizer.from_folder(folder)
    expected = tokenizer.chat([{"role": "user", "content": PROMPT}])
    assert Trace.load(tmp_path / "chat.npz").prompt[0].tolist() == expected


def test_the_gaps_of_a_prompt_are_filled_and_the_rest_stays(run, folder, tmp_path):
    mask = Tokenizer.from_folder(folder).decode([Tokenizer.from_folder(folder).mask_id])
    text = f"the cat{mask * 3} the mat{mask} end"
    code, out, _ = run("sample", "--prompt", text, "--infill", "--trace", tmp_path / "t.npz",
                       "--logits_eos_inf", "true")  # fmt: skip
    assert code == 0
    assert mask not in out
    assert out.startswith("the cat")
    assert " the mat" in out
    assert out.rstrip("\n").endswith(" end")
    trace = Trace.load(tmp_path / "t.npz")
    assert (trace.order >= 0).sum() == 4
    assert told(trace).prompt == "the cat"
    shown_first = "".join(piece.text for piece in shown(told(trace), trace.is_there(0)[0], "_"))
    assert shown_first == "___ the mat_ end"


@pytest.mark.parametrize(
    "options",
    [
        ("--selection", "threshold:0.1", "--cache", "dual"),
        ("--selection", "dream:entropy,alg_temp=0.1", "--temperature", 0.5, "--top_p", 0.9),
        ("--canvas", "grow", "--cache", "prefix"),
        ("--canvas", "adaptive:start=4,window=4", "--suppress_tokens", "5,6"),
        ("--preset", "gsm8k@fast-dllm", "--steps", 8),
    ],
)
def test_strategies_reach_the_sampler(run, options, tmp_path):
    arguments = ("--gen_length", 8, "--block_length", 4, *options, "--trace", tmp_path / "t.npz")
    code, out, _ = run("sample", "--prompt", PROMPT, *arguments)
    assert code == 0
    assert out.startswith(PROMPT)
    told_settings = Trace.load(tmp_path / "t.npz").about["settings"]
    for key, value in zip(options[::2], options[1::2], strict=True):
        if key in ("--selection", "--cache", "--canvas"):
            assert told_settings[key[2:]].startswith(str(value).split(":")[0])


def test_the_model_may_be_named_first(folder, run, capsys):
    _, expected, _ = run("sample", "--prompt", PROMPT, *SHORT)
    assert main(["sample", str(folder), "--prompt", PROMPT, *map(str, SHORT)]) == 0
    assert capsys.readouterr().out == expected


def test_max_length_is_another_name_of_gen_length(run):
    _, one, _ = run("sample", "--prompt", PROMPT, "--max_length", 8)
    _, other, _ = run("sample", "--prompt", PROMPT, "--gen_length", 8)
    assert one == other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gen_length", 64), "more than max_sequence_length=64"),
        (("--gen_length", 8, "--max_length", 9), "two names of one setting"),
        (("--gen_length", 8, "--block_length", 3), "not a whole number of blocks"),
        (("--num_samples", 2), "num_samples=2 with temperature=0 gives equal answers"),
        (("--prompts_file", "nowhere.txt"), "nowhere.txt"),
        (("--trace", "/nowhere/trace.npz"), "its folder does not exist"),
        (("--average",), "only training runs"),
        (("--temperture", 1), "did you mean 'temperature'"),
        (("--seed", -1), "seed=-1"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(run, arguments, message):
    prompt = () if "--prompts_file" in arguments else ("--prompt", PROMPT)
    code, out, err = run("sample", *prompt, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["tiny", "nowhere"])
def test_a_model_without_weights_is_refused(capsys, name):
    assert main(["sample", "--model_name_or_path", name]) == 2
    assert "model_name_or_path" in capsys.readouterr().err


def test_a_training_run_can_be_sampled(tmp_path, capsys):
    texts = ["the cat sat on the mat"] * 3
    # The tiny preset has 128 rows, fewer than the bytes: its own shape with room for them.
    import dataclasses

    tokenizer = Tokenizer.train(texts, 270, tmp_path)
    rows = tokenizer.vocab_size
    model = dataclasses.replace(
        PRESETS["tiny"], vocab_size=rows, embedding_size=rows, mask_token_id=tokenizer.mask_id,
        eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    run_training(make_config(tmp_path, max_steps=2, save_steps=2), model, make_rows())
    model.save(tmp_path)
    arguments = ["--model_name_or_path", str(tmp_path), "--prompt", PROMPT, *map(str, SHORT)]
    assert main(["sample", *arguments]) == 0
    assert capsys.readouterr().out.startswith(PROMPT)


def test_chat_answers_lines_from_a_pipe(run, monkeypatch, tmp_path):
    saved = tmp_path / "talk.json"
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"the cat\n/save {saved}\n/quit\nnever\n"))
    code, out, _ = run("chat", "--gen_length", 8)
    assert code == 0
    assert "Saved 2 messages" in out
    assert saved.exists()
