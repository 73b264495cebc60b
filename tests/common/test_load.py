"""A file and flags become one frozen dataclass, and every mistake is told in one line."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

import pytest

from jaxllada.common.config.load import from_mapping, load_config, load_file, save_config, to_yaml
from jaxllada.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Model:
    """Model."""

    model: str = "tiny"
    """Preset or folder."""


@dataclass(frozen=True, kw_only=True)
class Config(Model):
    learning_rate: float = 3e-4
    """Peak learning rate,
    after the warm-up."""
    max_steps: int = 10
    streaming: bool = False
    eval_steps: int | float = 200
    run_name: str | None = None
    betas: tuple[float, float] = (0.9, 0.99)
    lengths: list[int] = field(default_factory=lambda: [1, 2])
    report_to: str | list[str] | None = field(default=None, metadata={"help": "Trackers."})
    remat: Literal["none", "full"] = "none"
    eval_strategy: Literal["no", "steps"] = "no"
    mesh: dict[str, int] = field(default_factory=dict)
    resume: bool | str = False


@dataclass(frozen=True, kw_only=True)
class Tool:
    paths: list[str] = field(default_factory=list, metadata={"positional": True})
    json: bool = False
    budget: int | None = None


def load(*argv, cls=Config):
    return load_config(cls, argv, prog="jaxllada pretrain")


def changed(config) -> dict:
    default = type(config)()
    return {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if getattr(config, f.name) != getattr(default, f.name)
    }


SAID = [  # key, as the user writes it, value
    ("learning_rate", "3e-4", 3e-4),
    ("learning_rate", "3.0e-4", 3e-4),
    ("learning_rate", ".5", 0.5),
    ("learning_rate", "1", 1.0),
    ("max_steps", "1000_000", 1_000_000),
    ("max_steps", "1e3", 1000),
    ("streaming", "true", True),
    ("streaming", "yes", True),
    ("streaming", "false", False),
    ("eval_steps", "0.1", 0.1),
    ("eval_steps", "50", 50),
    ("run_name", "null", None),
    ("run_name", "007", "007"),
    ("run_name", "1e4", "1e4"),
    ("run_name", "no", "no"),
    ("betas", "[0.9, 0.95]", (0.9, 0.95)),
    ("lengths", "[3, 4]", [3, 4]),
    ("report_to", "wandb", "wandb"),
    ("remat", "full", "full"),
    ("eval_strategy", "no", "no"),
    ("mesh", "{data: 4, fsdp: 2}", {"data": 4, "fsdp": 2}),
    ("resume", "auto", "auto"),
    ("resume", "true", True),
]


@pytest.mark.parametrize(("key", "text", "value"), SAID)
@pytest.mark.parametrize("form", ["file", "--key value", "--key=value", "key=value"])
def test_a_file_and_every_form_of_flag_mean_the_same(tmp_path, key, text, value, form):
    if form == "file":
        (tmp_path / "c.yaml").write_text(f"{key}: {text}\n")
        argv = [str(tmp_path / "c.yaml")]
    else:
        argv = [w.replace("key", key).replace("value", text) for w in form.split()]
    found = getattr(load(*argv), key)
    assert found == value
    assert type(found) is type(value)


def test_flags_win_over_the_file_and_the_last_flag_wins(tmp_path):
    (tmp_path / "c.yaml").write_text("max_steps: 1\nlearning_rate: 1.0\n")
    config = load(str(tmp_path / "c.yaml"), "--max_steps", "2", "max_steps=3")
    assert changed(config) == {"max_steps": 3, "learning_rate": 1.0}


def test_a_boolean_flag_needs_no_value_and_dashes_are_underscores():
    config = load("--streaming", "--max-steps", "4", "--resume", "--run-name", "a=b -c")
    assert changed(config) == {
        "streaming": True, "max_steps": 4, "resume": True, "run_name": "a=b -c",
    }  # fmt: skip


@pytest.mark.parametrize("argv", [["--lengths", "3", "4"], ["--lengths", "3,4"], ["lengths=3,4"]])
def test_lists_are_words_or_commas(argv):
    assert load(*argv).lengths == [3, 4]


def test_plain_arguments_reach_the_positional_key():
    assert load("a", "b", "--json", "--budget=7", cls=Tool) == Tool(
        paths=["a", "b"], json=True, budget=7
    )
    assert load("--json", "a", cls=Tool) == Tool(paths=["a"], json=True)
    assert load("1+1=2", cls=Tool) == Tool(paths=["1+1=2"])


MISTAKES = [
    (["--learnin_rate", "3"], "unknown key 'learnin_rate' .* did you mean 'learning_rate'"),
    (["learnin_rate=3"], "unknown key 'learnin_rate' .* did you mean 'learning_rate'"),
    (["--zzz", "3"], "unknown key 'zzz' .*--help"),
    (["--learning_rate", "fast"], "learning_rate=fast: expected float"),
    (["--learning_rate", "true"], "learning_rate=true: expected float"),
    (["--max_steps", "1.5"], "max_steps=1.5: expected int"),
    (["--max_steps"], "--max_steps: no value given, expected int"),
    (["--max_steps", "--streaming"], "--max_steps: no value given, expected int"),
    (["--streaming", "maybe"], "streaming=maybe: expected true or false"),
    (["--remat", "ful"], "remat=ful: expected one of none, full; did you mean 'full'"),
    (["--betas", "0.9"], r"betas=0.9: expected \[float, float\]"),
    (["--lengths", "[1, x]"], r"lengths=\[1, x\]: expected list of int"),
    (["--mesh", "{data: x}"], "mesh={data: x}: expected mapping of text to int"),
    (["train.json"], "unexpected argument 'train.json'"),
    (["absent.yaml"], "no such file: absent.yaml"),
]


@pytest.mark.parametrize(("argv", "message"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_a_wrong_flag_is_told_in_one_line(argv, message):
    with pytest.raises(UserError, match=message) as caught:
        load(*argv)
    assert "\n" not in str(caught.value)


WRONG_FILES = [
    ("max_steps: 3\nlearnin_rate: 1\n", "'learnin_rate' in .*c.yaml line 2; did you mean"),
    ("max_steps: 3\nmax_steps: 4\n", "'max_steps' is written twice: .*line 1 and .*line 2"),
    ("mesh: {data: 1, data: 2}\n", "'data' is written twice"),
    ("- a\n- b\n", "c.yaml: expected lines 'key: value', got a list"),
    ("hello\n", "c.yaml: expected lines 'key: value', got a single value"),
    ("max_steps: 1\nlengths: [1\n", "c.yaml line 3: not valid YAML"),
    ("a: b: c\n", "c.yaml line 1: not valid YAML"),
    ("max_steps:\n", "max_steps has no value in .*line 1: expected int"),
    ("max_steps: many\n", "max_steps=many in .*c.yaml line 1: expected int"),
    ("lengths: [1, x]\n", r"lengths=\[.*x.*\] in .*c.yaml line 1: expected list of int"),
]


@pytest.mark.parametrize(("text", "message"), WRONG_FILES, ids=[t for t, _ in WRONG_FILES])
def test_a_wrong_file_is_told_with_its_line(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load(str(tmp_path / "c.yaml"))
    assert "\n" not in str(caught.value)


def test_a_folder_or_binary_instead_of_a_file_is_told(tmp_path):
    (tmp_path / "d.yaml").mkdir()
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("d.yaml", "b.yaml"):
        with pytest.raises(UserError, match=f"cannot read .*{name}"):
            load(str(tmp_path / name))


def test_a_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "pretrain.yaml").write_text("")
    with pytest.raises(UserError, match=r"no such file: .*pretrian.yaml \(.* has pretrain.yaml\)"):
        load(str(tmp_path / "pretrian.yaml"))


def test_a_required_key_is_asked_for():
    @dataclass(frozen=True, kw_only=True)
    class Needs:
        source: str = field(metadata={"help": "Where from."})

    with pytest.raises(UserError, match=r"missing key 'source': expected text \(Where from.\)"):
        load(cls=Needs)


ODD = Config(
    run_name="no", model="1e4", report_to=["a", "null"], learning_rate=1e-5, eval_steps=0.25,
    betas=(0.5, 1e-9), mesh={"data": 2}, resume="auto", eval_strategy="steps",
)  # fmt: skip


@pytest.mark.parametrize("config", [Config(), ODD])
def test_what_is_saved_loads_as_the_same(tmp_path, config):
    save_config(config, tmp_path / "run" / "config.yaml")
    assert load_file(Config, tmp_path / "run" / "config.yaml") == config
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_print_config_prints_the_merged_file(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("max_steps: 5\n")
    with pytest.raises(SystemExit) as stop:
        load(str(tmp_path / "c.yaml"), "--remat", "full", "--print_config")
    assert stop.value.code == 0
    assert capsys.readouterr().out == to_yaml(Config(max_steps=5, remat="full"))


def test_help_names_every_key_with_its_default_and_meaning(capsys):
    with pytest.raises(SystemExit) as stop:
        load("--max_steps", "--help")
    out = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for f in dataclasses.fields(Config):
        assert f"--{f.name} " in out
    assert "--learning_rate float default 0.0003 Peak learning rate, after the warm-up." in out
    assert "Model: --model text default tiny Preset or folder." in out
    assert "--report_to text|text,... default null Trackers." in out
    assert "--remat none|full" in out


@dataclass(frozen=True, kw_only=True)
class Larger(Model):
    """Larger models."""

    width: int = 8
    """Width."""
    model: str = "large"
    """Preset of a large one."""


def test_a_key_with_another_default_stays_in_its_group(capsys):
    with pytest.raises(SystemExit):
        load("--help", cls=Larger)
    text = " ".join(capsys.readouterr().out.split("\n\n", 1)[1].split())
    places = [text.index(part) for part in ("Model: --model", "default large", "keys: --width")]
    assert places == sorted(places)
    assert "Preset of a large one." in text


def test_python_values_follow_the_same_rules():
    assert from_mapping(Config, {"max_steps": 3, "betas": [0.1, 0.2]}) == Config(
        max_steps=3, betas=(0.1, 0.2)
    )
    with pytest.raises(UserError, match=r"max_steps=x in run.json: expected int"):
        from_mapping(Config, {"max_steps": "x"}, where="run.json")
    with pytest.raises(UserError, match=r"unknown key 'maxsteps' in run.json"):
        from_mapping(Config, {"maxsteps": 3}, where="run.json")
