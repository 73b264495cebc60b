"""The command line as a user meets it: exit codes, one-line errors, verbs."""

import os
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

from jaxllada import __main__ as cli
from jaxllada import __version__
from jaxllada.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 1
    """Steps."""


@pytest.fixture
def verb(monkeypatch):
    """Installs a verb `try` whose behaviour the test gives."""
    module = types.ModuleType("try_verb", "Tries.")
    module.Config = Config
    monkeypatch.setitem(sys.modules, "try_verb", module)
    monkeypatch.setitem(cli.VERBS, "try", ("try_verb", "try"))

    def install(run):
        module.run = run
        return module

    return install


def raising(error):
    def run(config):
        raise error

    return run


def test_help_lists_every_verb(capsys):
    for argv in ([], ["--help"], ["-h"], ["help"]):
        assert cli.main(argv) == 0
        out = capsys.readouterr().out
        assert all(name in out and text in out for name, (_, text) in cli.VERBS.items())
        assert all(f"(also: {alias})" in out for alias in cli.ALIASES)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxllada {__version__}\n"


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_a_verb_gets_its_config_and_gives_the_exit_code(verb, returned, code):
    seen = []
    verb(lambda config: seen.append(config) or returned)
    assert cli.main(["try", "--steps", "5"]) == code
    assert seen == [Config(steps=5)]


@pytest.mark.parametrize(
    ("argv", "error", "code", "message"),
    [
        (["pretran"], None, 2, "error: unknown verb 'pretran'; did you mean 'pretrain'?"),
        (["xyzzy"], None, 2, "error: unknown verb 'xyzzy'; expected one of tokenizer, prepare,"),
        (["doctor"], None, 2, "error: 'doctor' is no verb of jaxllada: use python -m npu_backend"),
        (["try", "--step", "1"], None, 2, "error: unknown key 'step' in argument '--step'; did"),
        (["try", "--steps", "x"], None, 2, "error: steps=x: expected int"),
        (["try"], UserError("a\n  b"), 2, "error: a b"),
        (["try"], KeyboardInterrupt(), 130, "interrupted"),
        (["try"], ModuleNotFoundError("No module named 'jax'", name="jax"), 2,
         "error: this needs jax: pip install 'jaxllada[jax]'"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_one_line_and_a_code(verb, capsys, argv, error, code, message):
    verb(raising(error))
    assert cli.main(argv) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith(message)


def test_a_fault_of_the_program_keeps_its_traceback(verb, monkeypatch):
    verb(raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["try"])
    verb(raising(UserError("x")))
    monkeypatch.setenv("JAXLLADA_TRACEBACK", "1")
    with pytest.raises(UserError):
        cli.main(["try"])


def test_the_help_of_a_verb_goes_to_stdout_and_exits_with_zero(verb, capsys):
    verb(raising(AssertionError("must not run")))
    for argv in (["try", "--help"], ["help", "try"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(argv)
        assert not stop.value.code
        assert "--steps int" in capsys.readouterr().out


def test_a_closed_pipe_is_quiet():
    """`jaxllada --help | head -0`: the reader is gone before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "jaxllada", "--help"],
        stdout=writer, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_console_script_is_the_same_program():
    script = Path(sys.executable).with_name("jaxllada")
    done = subprocess.run([script, "--version"], capture_output=True, text=True)
    assert done.stdout == f"jaxllada {__version__}\n"
