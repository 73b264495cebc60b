"""Published protocols by name: settings that run, scores of the authors' tables, real tasks."""

import re
from pathlib import Path

import pytest
import yaml

from jaxllada.__main__ import main
from jaxllada.apps.evaluation.jobs import jobs_of
from jaxllada.apps.evaluation.keys import EvalOptions
from jaxllada.apps.sampling_keys import SamplingKeys
from jaxllada.common.config.recipes import (
    FAMILIES,
    HOME,
    LikelihoodKeys,
    left_out,
    recipe,
    recipe_names,
    recipes_of,
)
from jaxllada.common.config.sampling_presets import sampling_preset
from jaxllada.common.errors import UserError

ALL = sorted(set(recipe_names().values()))


def test_the_settings_of_every_recipe_can_be_run():
    for name in ALL:
        found = recipe(name)
        if found.sampling:
            config = SamplingKeys(**found.sampling).sampling(room=8192)
            assert config.gen_length == found.sampling["gen_length"], name
        else:
            LikelihoodKeys(**found.likelihood)
        assert found.metric, name
        assert (found.published is None) or found.source, name
        assert found.published is None or found.harness != "none", name


def test_every_recipe_makes_a_job_of_eval_as_it_is():
    jobs = jobs_of(EvalOptions(model_name_or_path=".", recipe=FAMILIES))
    assert sorted(job.name for job in jobs) == ALL
    for job in jobs:
        found = recipe(job.name)
        assert not job.changed, job.name
        assert (job.tasks, job.num_fewshot, job.chat) == (
            found.tasks, found.num_fewshot, found.chat,
        ), job.name  # fmt: skip
        assert job.manner.sampling == found.sampling, job.name
        assert job.manner.add_bos == found.likelihood.get("add_bos", False), job.name


def test_every_file_of_recipes_is_a_family():
    assert sorted(path.stem for path in HOME.glob("*.yaml")) == sorted(FAMILIES)


def test_sampling_keys_come_from_the_preset_of_the_same_name():
    for name in ("gsm8k@llada-instruct", "humaneval@illada-base", "math-512@fast-dllm"):
        assert recipe(name).sampling == sampling_preset(name)


def test_scores_of_llada_base_are_those_of_the_authors_tables():
    """EVAL.md of ML-GSAI/LLaDA, typed off a second time: without guidance, with, by length."""
    plain = {
        "arc-c": 45.9, "hellaswag": 70.5, "truthfulqa": 46.1, "winogrande": 74.8, "gpqa": 25.2,
        "piqa": 73.6, "mmlu": 65.9, "cmmlu": 69.9, "ceval": 70.5,
    }  # fmt: skip
    guided = {"arc-c": 47.9, "hellaswag": 72.5, "truthfulqa": 46.4, "gpqa": 26.1, "piqa": 74.4}
    for task, score in plain.items():
        found = recipe(f"{task}@llada-base")
        assert (found.published, found.likelihood.get("cfg_scale", 0)) == (score, 0), task
        assert found.likelihood["mc_num"] == (1 if task in ("mmlu", "cmmlu", "ceval") else 128)
        assert found.num_fewshot == (5 if task in "mmlu cmmlu ceval winogrande gpqa" else 0), task
    for task, score in guided.items():
        found = recipe(f"{task}-cfg@llada-base")
        scale = 2.0 if task == "truthfulqa" else 0.5
        assert (found.published, found.likelihood["cfg_scale"]) == (score, scale), task
    lengths = {
        1024: (49.7, 70.3, 31.4, 35.4, 40.0),
        512: (50.4, 70.8, 30.9, 32.9, 39.2),
        256: (45.0, 70.0, 30.3, 32.9, 40.2),
    }
    tasks = ("bbh", "gsm8k", "math", "humaneval", "mbpp")
    for length, scores in lengths.items():
        for task, score in zip(tasks, scores, strict=True):
            suffix = "" if length == 1024 else f"-{length}"
            found = recipe(f"{task}{suffix}@llada-base")
            assert found.published == score, found.name
            assert set(found.sampling.values()) == {length}, found.name


def test_strategies_are_told_apart_by_canvas_and_block():
    """Ablations of arXiv:2502.09992v3 on GSM8K."""
    table = {
        "autoregressive": (63.1, "grow", 1), "grow-2": (62.6, "grow", 2),
        "grow-8": (68.2, "grow", 8), "grow-32": (68.6, "grow", 32),
        "blocks-4": (70.3, "fixed", 4), "random": (21.3, "fixed", 256),
    }  # fmt: skip
    for suffix, (score, canvas, block) in table.items():
        found = recipe(f"gsm8k-{suffix}")
        config = SamplingKeys(**found.sampling).sampling(room=8192)
        assert (found.published, config.canvas, config.block_length) == (score, canvas, block)
        assert config.steps_per_block == block, "one model call per token"


def test_scores_of_opencompass_are_told_as_such():
    table = {
        "gsm8k": 78.9, "math": 42.7, "mmlu": 65.4, "mmlu-pro": 36.6, "arc-c": 89.2,
        "gsm8k-pure": 68.8, "math-pure": 29.6, "gpqa": 32.3, "humaneval": 47.0, "mbpp": 39.6,
        "gsm8k@llada-1.5": 83.6, "math@llada-1.5": 42.3, "gpqa@llada-1.5": 34.8,
        "humaneval@llada-1.5": 51.2, "mbpp@llada-1.5": 42.6, "ifeval@llada-1.5": 65.2,
    }  # fmt: skip
    for name, score in table.items():
        found = recipe(name)
        assert (found.published, found.harness, found.chat) == (score, "opencompass", True), name


def test_scores_of_fast_dllm_are_those_of_its_table():
    """Table 1 of arXiv:2505.22618: plain, cache, parallel, both."""
    table = {
        "gsm8k": (79.3, 79.5, 79.2, 78.5), "gsm8k-512": (77.5, 77.0, 77.6, 77.2),
        "math": (33.5, 33.3, 33.4, 33.2), "math-512": (37.2, 36.2, 36.8, 36.0),
        "humaneval": (41.5, 42.7, 43.9, 43.3), "humaneval-512": (43.9, 45.7, 43.3, 44.5),
        "mbpp": (29.4, 29.6, 28.4, 28.2), "mbpp-512": (14.8, 13.4, 15.0, 13.8),
    }  # fmt: skip
    settings = (("-plain", {}), ("-prefix", {"cache"}), ("-parallel", {"selection"}),
                ("", {"cache", "selection"}))  # fmt: skip
    for task, scores in table.items():
        for (suffix, keys), score in zip(settings, scores, strict=True):
            found = recipe(f"{task}{suffix}@fast-dllm")
            assert found.published == score, found.name
            assert found.sampling.keys() - {"gen_length", "steps", "block_length"} == set(keys)
            assert found.sampling["gen_length"] == (512 if task.endswith("-512") else 256)


def test_a_family_and_names_and_a_file_make_one_list(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("tasks: gsm8k,math\nsampling: {preset: gsm8k, steps: 64}\nchat: true\n")
    found = recipes_of(f"illada-instruct, gsm8k,math@illada-instruct,{own}")
    names = [one.name for one in found]
    assert names[-2:] == ["gsm8k@llada-instruct", "mine"]
    assert names.count("math@illada-instruct") == 1
    assert len(names) == 5
    assert found[-1].tasks == ("gsm8k", "math")
    assert found[-1].sampling == {"gen_length": 256, "steps": 64, "block_length": 8}


def test_what_a_recipe_prints_is_a_recipe(tmp_path, capsys):
    for name in ("gsm8k@dllm-instruct", "arc-c@illada-base", "mmlu@llada-instruct"):
        assert main(["recipes", name]) == 0
        path = tmp_path / f"{name.partition('@')[0]}.yaml"
        path.write_text(capsys.readouterr().out)
        again, first = recipe(str(path)), recipe(name)
        assert {**vars(again), "name": name} == vars(first)
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ALL)
    assert all(reason in out for reason in left_out().values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gsm9k", "recipe=gsm9k is unknown; did you mean 'gsm8k'"),
        ("gsm8k@llada", "choose from gsm8k@llada-instruct"),
        ("llada-bas", "did you mean 'llada-base'"),
        ("gsm8k,,mmlu", "empty name"),
        ("gsm8k@illada-instruct", "not offered: 89.0 with a task of the authors"),
    ],
)
def test_a_wrong_name_says_what_there_is(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        recipes_of(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: gsm8k\n", "sampling .* or likelihood"),
        ("tasks: gsm8k\nsampling: gsm8k\nlikelihood: {cfg_scale: 1}\n", "one of them"),
        ("tasks: gsm8k\nsampling: {step: 3}\n", "unknown key 'step' .*'steps'"),
        ("tasks: mmlu\nlikelihood: {mc_num: 3, batch_size: 2}\n", "mc_num=3 cannot be drawn"),
        ("tasks: mmlu\nlikelihood: fast\n", "expected keys and values"),
        ("tasks: mmlu\nsampling: gsm8k\nfewshot_as_multiturn: true\n", "chat=false"),
        ("tasks: mmlu\nsampling: gsm8k\nnum_fewshot: -1\n", "num_fewshot=-1"),
        ("tasks: mmlu\nsampling: gsm8k\npublised: 3\n", "unknown key 'publised'.*'published'"),
        ("name: x\ntasks: mmlu\nsampling: gsm8k\n", "unknown key 'name'"),
        ("sampling: gsm8k\n", "tasks is empty"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        recipe(str(path))


class _Plain(yaml.SafeLoader):
    """Reads task files without running the functions they name."""


_Plain.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def _values(keys: str, text: str) -> list[str]:
    """What plain lines `key: value` say, with or without quotes."""
    return re.findall(rf"^\"?(?:{keys})\"?: [\"']?([^\s\"'\[]+)[\"']?\s*$", text, re.M)


class Tasks:
    """The task files of lm_eval and ours by name, read as text: far faster than an index."""

    def __init__(self):
        lm_eval = pytest.importorskip("lm_eval")
        self.files: dict[str, Path] = {}
        self.tagged: dict[str, str] = {}
        homes = (Path(lm_eval.__file__).parent / "tasks", HOME.parent / "tasks")
        for path in sorted(path for home in homes for path in home.rglob("*.yaml")):
            text = path.read_text(encoding="utf-8")
            for name in _values("task|group", text):
                self.files.setdefault(name, path)
                for tag in _values("tag", text):
                    self.tagged.setdefault(tag, name)

    def read(self, path: Path) -> dict:
        """A file with what it includes."""
        config = yaml.load(path.read_text(encoding="utf-8"), _Plain)
        base = config.pop("include", None)
        return (self.read(path.parent / base) if base else {}) | config

    def metrics(self, name: str) -> tuple[set[str], str]:
        """The metrics of a task or group as results name them, and how its tasks are answered."""
        config = self.read(self.files[name])
        if "group" in config:
            listed = {
                f"{one['metric']},{one.get('filter_list', 'none')}"
                for one in config["aggregate_metric_list"]
            }
            child = config["task"][0]
            while isinstance(child, dict):
                child = child["task"][0]
            below, kind = self.metrics(child if child in self.files else self.tagged[child])
            return listed & below, kind
        names = [str(one["metric"]).rpartition(".")[2] for one in config["metric_list"]]
        # A function that returns a dict names its metrics itself: pass_at_k gives pass@1.
        names = ["pass@1" if name == "pass_at_k" else name for name in names]
        filters = [one["name"] for one in config.get("filter_list") or [{"name": "none"}]]
        return {f"{name},{rule}" for name in names for rule in filters}, config["output_type"]


def test_tasks_and_metrics_of_every_recipe_exist():
    tasks = Tasks()
    for name in ALL:
        found = recipe(name)
        for task in found.tasks:
            assert task in tasks.files, f"{name}: no task {task}"
            metrics, kind = tasks.metrics(task)
            assert found.metric in metrics, f"{name}: {found.metric} is not in {metrics}"
            assert (kind == "generate_until") == bool(found.sampling), f"{name}: {kind}"
