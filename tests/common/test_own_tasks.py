"""Tasks of this package, of a file of questions and of a YAML file, and the index of names."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import lm_eval
import pytest
from lm_eval.api.model import LM
from lm_eval.tasks._index import TaskIndex

from jaxllada.apps.evaluation.job import Loaded
from jaxllada.apps.tasks.index import index_of
from jaxllada.apps.tasks.local_tasks import OWN, task_dict, task_manager
from jaxllada.common.errors import UserError

PAIRS = [
    {"first": "窈窕淑女", "second": "君子好逑", "source": "诗经"},
    {"first": "今我来思", "second": "雨雪霏霏", "source": "诗经"},
    {"first": "白日依山尽", "second": "黄河入海流", "source": "登鹳雀楼"},
]


class Fixed(LM):
    """Answers with a function of the request."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def loglikelihood(self, requests):
        return [(self.answer(request), False) for request in requests]

    def generate_until(self, requests):
        return [self.answer(request) for request in requests]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError


def results(tasks, answer):
    found = lm_eval.evaluate(
        lm=Fixed(answer), task_dict=tasks, bootstrap_iters=0, log_samples=False
    )
    return found["results"]


@pytest.mark.parametrize(
    "place", ["poem_data.json", "poem_pairs.json", "reversal_poems/test.jsonl"]
)
def test_poems_are_asked_both_ways_and_right_where_the_line_occurs(place, tmp_path):
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    text = json.dumps(PAIRS) if place.endswith(".json") else "\n".join(map(json.dumps, PAIRS))
    file.write_text(text, encoding="utf-8")
    tasks = task_dict(["reversal_poems"], data=str(tmp_path))
    asked = []

    def answer(request):
        asked.append(request.args[0])
        # Right forward but for one; backward it says the line that was given.
        return "" if "今我来思" in request.args[0] else "是君子好逑 黄河入海流"

    found = results(tasks, answer)
    assert found["reversal_poems_forward"]["acc,none"] == pytest.approx(2 / 3)
    assert found["reversal_poems_backward"]["acc,none"] == 0
    assert asked[0] == "窈窕淑女的下一句是什么\uff1f 直接输出句子即可。"
    assert asked[3] == "君子好逑的上一句是什么\uff1f 直接输出句子即可。"
    for task in tasks["tasks"].values():
        assert task.config.generation_kwargs["until"] == []


def test_poems_without_data_say_where_they_are():
    with pytest.raises(
        UserError, match="not on the Hub: put poem_data.json .*ML-GSAI/LLaDA.*--data"
    ):
        task_dict(["reversal_poems_forward"])


def write_questions(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_questions_are_asked_as_score_asks_them(tmp_path):
    rows = [
        {"prompt": "2 + 2 = ", "options": ["3", "4", "22"], "answer": 1},
        {"prompt": "7", "options": [" is odd", " is even, I think"], "answer": " is odd"},
    ]
    name = write_questions(tmp_path / "sums.jsonl", rows)
    tasks = task_dict([name])
    asked = []

    def answer(request):
        asked.append(request.args)
        return -float(len(request.args[1]))

    found = results(tasks, answer)["sums"]
    assert asked[:3] == [("2 + 2 = ", "3"), ("2 + 2 = ", "4"), ("2 + 2 = ", "22")]
    assert asked[3:] == [("7", " is odd"), ("7", " is even, I think")]
    # The shortest option is best: 3 is wrong, " is odd" is right; per byte all are equal.
    assert found["acc,none"] == 0.5
    assert found["acc_bytes,none"] == 0.5


def test_faults_of_questions_are_told(tmp_path):
    name = write_questions(tmp_path / "a.jsonl", [{"prompt": "1", "options": ["2"]}])
    with pytest.raises(UserError, match="a.jsonl: the questions have no answer"):
        task_dict([name])
    with pytest.raises(UserError, match="b.jsonl: no such file"):
        task_dict([str(tmp_path / "b.jsonl")])
    with pytest.raises(UserError, match="'gsm9k' is no task, .*did you mean 'gsm8k'"):
        task_dict(["gsm9k"])
    with pytest.raises(UserError, match="'gsm_k\\*x' is no task, group, tag or pattern"):
        task_dict(["gsm_k*x"])
    with pytest.raises(UserError, match="tasks is not given"):
        task_dict([])


YAML = """task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "The {{thing}} is"
doc_to_choice: ["red", "green"]
doc_to_target: colour
num_fewshot: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.parametrize("keys", [{}, {"data": "."}])
def test_a_yaml_file_finds_its_data_beside_it(keys, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "colours.yaml").write_text(YAML)
    (folder / "rows.jsonl").write_text('{"thing": "grass", "colour": 1}\n')
    tasks = task_dict([str(folder / "colours.yaml")], **keys)
    assert results(tasks, lambda r: float(r.args[1] == " green"))["colours"]["acc,none"] == 1
    (folder / "rows.jsonl").write_text('{"thing": "grass", "shade": 1}\n')
    with pytest.raises(UserError, match="tasks: colours"):
        tasks = task_dict([str(folder / "colours.yaml")], data=str(tmp_path))


@pytest.mark.parametrize("changed", ["num_fewshot: 0", "num_fewshot: null", "fewshot_split: test"])
def test_examples_are_needed_as_lm_eval_takes_them(changed, tmp_path):
    """A task that says 0 keeps 0 whatever is asked for."""
    text = YAML.replace("path: json", "path: things") + "training_split: train\n"
    (tmp_path / "colours.yaml").write_text(text.replace("num_fewshot: 0", changed))
    (tmp_path / "things.jsonl").write_text('{"thing": "grass", "colour": 1}\n' * 3)
    name, data = str(tmp_path / "colours.yaml"), str(tmp_path)
    if "null" in changed:
        with pytest.raises(UserError, match="no split 'train', only test for 2 examples"):
            task_dict([name], data=data, num_fewshot=2)
    else:
        task_dict([name], data=data, num_fewshot=2)
    task_dict([name], data=data, num_fewshot=0)


def test_a_word_that_is_an_option_is_no_column(tmp_path):
    text = YAML.replace("path: json", "path: things")
    (tmp_path / "things.jsonl").write_text('{"thing": "grass"}\n')
    (tmp_path / "colours.yaml").write_text(text.replace("target: colour", "target: green"))
    task_dict([str(tmp_path / "colours.yaml")], data=str(tmp_path))
    (tmp_path / "colours.yaml").write_text(text.replace("target: colour", "target: shade"))
    with pytest.raises(UserError, match="things.jsonl has no column 'shade'; it has thing"):
        task_dict([str(tmp_path / "colours.yaml")], data=str(tmp_path))


def test_members_that_a_group_defines_itself_read_the_folder_too(tmp_path):
    inline = YAML.replace("dataset_path: json", "dataset_path: owner/things")
    inline = "\n".join(f"    {line}" for line in inline.splitlines() if "kwargs" not in line)
    group = "group: many\ntask:\n  -\n" + inline + "\n"
    (tmp_path / "many.yaml").write_text(group)
    with pytest.raises(UserError, match="no data for many::colours, which reads owner/things"):
        task_dict([str(tmp_path / "many.yaml")], data=str(tmp_path))
    (tmp_path / "things.jsonl").write_text('{"thing": "grass", "colour": 1}\n')
    tasks = task_dict([str(tmp_path / "many.yaml")], data=str(tmp_path))["tasks"]
    assert [len(task.eval_docs) for task in tasks.values()] == [1]


def test_a_group_of_a_file_finds_tasks_beside_it_for_that_call_alone(tmp_path):
    (tmp_path / "group.yaml").write_text("group: mine\ntask: [colours, gsm8k]\n")
    (tmp_path / "colours.yaml").write_text(YAML.replace("path: json", "path: owner/things"))
    changed = "task: gsm8k\n" + YAML.replace("path: json", "path: owner/things").split("\n", 1)[1]
    (tmp_path / "gsm8k.yaml").write_text(changed)
    (tmp_path / "things.jsonl").write_text('{"thing": "grass", "colour": 1}\n')
    tasks = task_dict([str(tmp_path / "group.yaml")], data=str(tmp_path))
    assert tasks["group_map"] == {"mine": ["colours", "gsm8k"]}
    assert tasks["tasks"]["gsm8k"].OUTPUT_TYPE == "multiple_choice"
    with pytest.raises(UserError, match="no data for gsm8k, which reads openai/gsm8k"):
        task_dict(["gsm8k"], data=str(tmp_path))
    (tmp_path / "none.yaml").write_text("colour: red\n")
    with pytest.raises(UserError, match="none.yaml defines no task or group"):
        task_dict([str(tmp_path / "none.yaml")], data=str(tmp_path))


def test_a_yaml_file_without_its_data_is_told(tmp_path):
    (tmp_path / "colours.yaml").write_text(YAML)
    with pytest.raises(UserError, match="colours cannot be made from .*rows.jsonl"):
        task_dict([str(tmp_path / "colours.yaml")])


def test_making_tasks_leaves_the_random_numbers_of_others_alone(tmp_path):
    (tmp_path / "poem_data.json").write_text(json.dumps(PAIRS))
    state = random.getstate()
    task_dict(["reversal_poems"], data=str(tmp_path))
    assert random.getstate() == state


def test_the_index_is_the_one_of_lm_eval():
    """On every eighth folder of its tasks; all of them would take half a minute."""
    folders = [Path(lm_eval.tasks.__file__).parent / name for name in ("mmlu", "scrolls", "arc")]
    folders += sorted(folder for folder in folders[0].parent.iterdir() if folder.is_dir())[::8]
    known = set()
    for folder in (*folders, OWN):
        theirs, ours = TaskIndex.build([folder]), index_of(folder)
        assert {n: (e.kind, e.yaml_path, e.tags) for n, e in ours.items()} == {
            n: (e.kind, e.yaml_path, e.tags) for n, e in theirs.items()
        }
        known |= ours.keys()
    assert {"mmlu", "mmlu_anatomy", "mmlu_stem_tasks", "arc_challenge", "reversal_poems"} < known
    assert known < set(task_manager().all_tasks)
    kinds = [task_manager().all_subtasks, task_manager().all_groups, task_manager().all_tags]
    assert sorted(name for names in kinds for name in names) == task_manager().all_tasks


def test_a_group_without_a_mean_is_shown_by_its_members(tmp_path):
    (tmp_path / "poem_data.json").write_text(json.dumps(PAIRS))
    yaml = YAML.replace("rows.jsonl", str(tmp_path / "r.jsonl"))
    for subject in ("a", "b"):
        (tmp_path / f"own_{subject}.yaml").write_text(yaml.replace("colours", f"own_{subject}"))
    (tmp_path / "r.jsonl").write_text('{"thing": "grass", "colour": 1}\n')
    members = [str(tmp_path / f"own_{subject}.yaml") for subject in ("a", "b")]
    tasks = task_dict([*members, "reversal_poems"], data=str(tmp_path))
    mean = SimpleNamespace(has_aggregation=True)
    tasks["groups"] |= {"own": mean, "all": SimpleNamespace(has_aggregation=False)}
    tasks["group_map"] |= {"own": ["own_a", "own_b"], "all": ["own", "reversal_poems"]}
    shown = Loaded(None, tasks, {}).names
    assert shown == ["own", "reversal_poems_forward", "reversal_poems_backward"]
