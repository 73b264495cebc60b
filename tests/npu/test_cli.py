"""The verbs of npu_backend as a user meets them, on a small model folder."""

import dataclasses
import io
import subprocess
import sys

import pytest
import torch

import npu_backend
from jaxllada.common.config.fields import keys_of
from jaxllada.common.config.load import load_config, save_config
from jaxllada.common.config.presets import PRESETS
from jaxllada.common.errors import UserError
from jaxllada.common.tokenizer import Tokenizer
from jaxllada.common.trace import Trace
from jaxllada.common.version import __version__
from npu_backend import __main__ as cli
from npu_backend.models.mask_predictor import MaskPredictor
from tests.npu.devices import DEVICE, IS_NPU
from tests.npu.tiny_run import make_config, run_training

PROMPT = "the cat sat"
SHORT = ("--gen_length", 8, "--block_length", 4, "--steps", 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    texts = ["the cat sat on the mat and the dog sat on the log"] * 20
    tokenizer = Tokenizer.train(texts, 280, path)
    rows = tokenizer.vocab_size
    config = dataclasses.replace(
        PRESETS["tiny"], vocab_size=rows, embedding_size=rows, mask_token_id=tokenizer.mask_id,
        eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    model = MaskPredictor(config, generator=torch.Generator().manual_seed(0))
    npu_backend.save(model, path)
    return path


@pytest.fixture
def run(folder, capsys):
    def run(verb, *arguments):
        given = ["--model_name_or_path", str(folder), "--device", DEVICE.type]
        code = cli.main([verb, *given, *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_help_lists_every_verb_under_its_own_name(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m npu_backend VERB")
    assert all(name in out and text in out for name, (_, text) in cli.VERBS.items())
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"npu_backend {__version__}\n"


def test_shared_verbs_show_examples_of_this_program(capsys):
    with pytest.raises(SystemExit):
        cli.main(["tokenizer", "--help"])
    out = capsys.readouterr().out
    assert "    python -m npu_backend tokenizer --dataset_args" in out
    assert "jaxllada tokenizer" not in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["convert"], "error: 'convert' is no verb of python -m npu_backend: use jaxllada conv"),
        (["smaple"], "error: unknown verb 'smaple'; did you mean 'sample'?"),
    ],
)
def test_unknown_verbs_are_told_what_to_type(capsys, argv, message):
    assert cli.main(argv) == 2
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_key_is_explained_and_unknown_ones_are_refused(verb):
    import importlib

    module = importlib.import_module(cli.VERBS[verb][0])
    assert [key.name for key in keys_of(module.Config).values() if not key.help] == []
    assert module.__doc__
    with pytest.raises(UserError, match="unknown key 'zzyzx'"):
        load_config(module.Config, ["--zzyzx", "1"])


def test_sample_continues_the_prompt_on_stdout(run):
    code, out, err = run("sample", "--prompt", PROMPT, *SHORT)
    assert code == 0
    assert out.startswith(PROMPT)
    assert "tokens/s" in err


def test_the_model_may_be_named_first(folder, run, capsys):
    _, expected, _ = run("sample", "--prompt", PROMPT, *SHORT)
    given = [str(folder), "--device", DEVICE.type, "--prompt", PROMPT, *map(str, SHORT)]
    assert cli.main(["sample", *given]) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("batch_size", [1, 3])
def test_samples_do_not_depend_on_the_batch_size(run, batch_size):
    arguments = ("--prompt", PROMPT, "--num_samples", 4, "--temperature", 1.0, *SHORT)
    _, one, _ = run("sample", *arguments, "--batch_size", batch_size)
    _, other, _ = run("sample", *arguments, "--batch_size", 8)
    assert one == other
    answers = one.split("--- ")[1:]
    assert [answer[0] for answer in answers] == list("1234")
    assert len({answer[1:] for answer in answers}) > 1


def test_trace_and_playback_show_the_same_run(run, tmp_path):
    file = tmp_path / "trace.npz"
    _, out, _ = run("sample", "--prompt", PROMPT, *SHORT, "--trace", file, "--animate")
    trace = Trace.load(file)
    assert trace.tokens.shape == (1, 8)
    assert f"step {trace.num_steps}/{trace.num_steps}" in out


def test_chat_answers_lines_from_a_pipe(run, monkeypatch, tmp_path):
    saved = tmp_path / "talk.json"
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"the cat\n/save {saved}\n/quit\nnever\n"))
    code, out, _ = run("chat", "--gen_length", 8)
    assert code == 0
    assert "Saved 2 messages" in out
    assert saved.exists()


def test_verify_compares_folders_and_logits(folder, tmp_path, capsys):
    other = tmp_path / "other"
    npu_backend.save(npu_backend.load(folder), other)
    given = ["--logits", "--device", DEVICE.type]
    assert cli.main(["verify", str(folder), str(other), *given]) == 0
    model = npu_backend.load(folder)
    with torch.no_grad():
        model.wte[3, 5] += 1
    npu_backend.save(model, other)
    assert cli.main(["verify", str(folder), str(other), *given]) == 1
    assert "wte" in capsys.readouterr().out


def test_inspect_reads_the_headers(folder, capsys):
    assert cli.main(["inspect", str(folder)]) == 0
    assert "parameters" in capsys.readouterr().out


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_training_run_can_be_sampled(tmp_path, capsys, ema_decay):
    """Checkpoints hold the average where one is kept: the other weights cannot be asked for."""
    tokenizer = Tokenizer.train(["the cat sat on the mat"] * 3, 270, tmp_path)
    rows = tokenizer.vocab_size
    model = dataclasses.replace(
        PRESETS["tiny"], vocab_size=rows, embedding_size=rows, mask_token_id=tokenizer.mask_id,
        eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    config = make_config(tmp_path, max_steps=2, save_steps=2, ema_decay=ema_decay)
    run_training(config, model)
    model.save(tmp_path)
    save_config(config, tmp_path / "config.yaml")
    given = ["sample", str(tmp_path), "--device", DEVICE.type, "--prompt", PROMPT]
    given += map(str, SHORT)
    assert cli.main(given) == 0
    assert capsys.readouterr().out.startswith(PROMPT)
    kept, other = ("true", "false") if ema_decay else ("false", "true")
    assert cli.main([*given, "--average", kept]) == 0
    assert cli.main([*given, "--average", other]) == 2
    assert f"average={other}: this run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gen_length", 64), "more than max_sequence_length=64"),
        (("--average", "true"), "average=true: only training runs keep an average"),
        (("--ops", "fast"), "ops=fast: expected one of auto, fused, plain"),
        (("--dtype", "float64"), "dtype=float64"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(run, arguments, message):
    code, out, err = run("sample", "--prompt", PROMPT, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.skipif(IS_NPU, reason="there is an NPU here")
def test_without_an_npu_the_verb_says_what_to_type(folder, capsys):
    given = ["--model_name_or_path", str(folder), "--device", "npu"]
    assert cli.main(["sample", *given]) == 2
    err = capsys.readouterr().err
    assert "torch_npu is not installed" in err
    assert "--device cpu" in err


@pytest.mark.parametrize("package", ["npu_backend", "npu_backend.__main__", *(
    module for module, _ in cli.VERBS.values()
)])  # fmt: skip
def test_importing_loads_no_framework(package):
    """What help and errors need comes without torch, which takes seconds to import."""
    code = f"import sys, {package}; assert not {{'torch', 'torch_npu', 'jax'}} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_are_all_there():
    import jaxllada

    for name in npu_backend.__all__:
        assert getattr(npu_backend, name).__name__ == name
    assert npu_backend.__all__ == jaxllada.__all__
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        npu_backend.lod  # noqa: B018
