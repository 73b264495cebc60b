"""What the documents show works: fenced commands parse, Python examples run, YAML files load."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import jaxllada.__main__
import npu_backend.__main__
from jaxllada.__main__ import ALIASES, VERBS
from jaxllada.common.config.fields import keys_of
from jaxllada.common.config.load import load_config
from jaxllada.common.errors import UserError

ROOT = Path(__file__).parents[2]
FOLDERS = [f for f in ROOT.iterdir() if f.is_dir() and f.name[0] != "." and f.name != "output"]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(p for folder in FOLDERS for p in folder.rglob("*.md"))])
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(path: Path, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(path.read_text("utf-8")) if kind == language]


def without_comments(block: str) -> str:
    return "\n".join(line.split("  #")[0].rstrip() for line in block.splitlines())


PACKAGES = {"jaxllada": jaxllada.__main__, "npu_backend": npu_backend.__main__}


def commands() -> list[tuple[str, str, list[str]]]:
    """Every `jaxllada VERB ...` or `python -m npu_backend VERB ...` line of a fenced shell block.

    As (document, package, arguments).
    """
    found = []
    for path in DOCUMENTS:
        for kind in ("bash", "sh", "shell", "console"):
            for block in blocks(path, kind):
                for line in block.replace("\\\n", " ").splitlines():
                    words = shlex.split(line.removeprefix("$ "), comments=True)
                    words = words[: next((i for i, w in enumerate(words) if w in "|>&&;"), None)]
                    while words and re.match(r"[A-Z_]+=", words[0]):
                        words.pop(0)
                    if words[1:2] == ["-m"] and words[2] in PACKAGES:
                        words = words[2:]
                    name = words[0].rsplit("/", 1)[-1] if words else ""
                    if name in PACKAGES:
                        found.append((str(path.relative_to(ROOT)), name, words[1:]))
    return found


COMMANDS = commands()


@pytest.mark.parametrize(
    ("document", "package", "argv"), COMMANDS, ids=[f"{d}: {' '.join(a)}" for d, _, a in COMMANDS]
)
def test_a_command_of_a_document_parses(document, package, argv, monkeypatch):
    monkeypatch.chdir(ROOT)
    if argv[0].startswith("-"):
        assert argv[0] in ("--help", "--version")
        return
    if argv[0] == "VERB":  # the grammar, not a command
        return
    main = PACKAGES[package]
    module = importlib.import_module(main.VERBS[ALIASES.get(argv[0], argv[0])][0])
    if "--help" in argv or "--print_config" in argv:
        with pytest.raises(SystemExit):
            load_config(module.Config, argv[1:])
    else:
        load_config(module.Config, argv[1:])


# Each once: a translation shows the same code.
EXAMPLES = {
    without_comments(block): (path, i)
    for path in reversed(DOCUMENTS)
    for i, block in enumerate(blocks(path, "python"))
}.values()


@pytest.mark.parametrize(("path", "index"), EXAMPLES, ids=[f"{p.name}-{i}" for p, i in EXAMPLES])
def test_a_python_example_runs_from_an_empty_folder(path, index, tmp_path):
    file = tmp_path / "example.py"
    file.write_text(blocks(path, "python")[index], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, file], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr


def test_the_english_and_chinese_readme_show_the_same_code():
    if not (ROOT / "README.zh-CN.md").exists():
        pytest.fail("README.zh-CN.md is missing")
    for language in ("bash", "python"):
        english, chinese = (blocks(ROOT / n, language) for n in ("README.md", "README.zh-CN.md"))
        assert list(map(without_comments, english)) == list(map(without_comments, chinese))


FILES = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_every_yaml_of_configs_loads(path):
    """The folder below configs/ names the verb that reads the file."""
    verb = path.relative_to(ROOT / "configs").parts[0]
    config = importlib.import_module(VERBS[ALIASES.get(verb, verb)][0]).Config
    load_config(config, [str(path)])


EVERY_VERB = sorted({module for main in PACKAGES.values() for module, _ in main.VERBS.values()})


@pytest.mark.parametrize("name", EVERY_VERB)
def test_every_key_of_every_verb_is_explained(name):
    module = importlib.import_module(name)
    keys = keys_of(module.Config)
    assert keys
    assert [k.name for k in keys.values() if not k.help] == []
    assert module.__doc__


@pytest.mark.parametrize("name", EVERY_VERB)
def test_every_verb_refuses_an_unknown_key(name):
    module = importlib.import_module(name)
    with pytest.raises(UserError, match="unknown key 'zzyzx'"):
        load_config(module.Config, ["--zzyzx", "1"])


SOURCED = ("venv.sh", "ascend_env.sh", "ranks.sh")


@pytest.mark.parametrize("script", sorted((ROOT / "launch").glob("*.sh")), ids=lambda p: p.name)
def test_scripts_are_sound_shell_and_say_nothing_about_this_machine(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert script.name in SOURCED or os.access(script, os.X_OK)
    assert not re.search(r"(?<![\w$}])/(home|root|Users)/", script.read_text())
