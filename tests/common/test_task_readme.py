"""What the readme of the tasks says of data is what lm_eval's definitions say."""

import json
import re
from types import SimpleNamespace

import pytest
from lm_eval.config.task import TaskConfig
from lm_eval.tasks._index import Kind
from lm_eval.tasks._yaml_loader import load_yaml

from jaxllada.apps.tasks.local_tasks import OWN, task_dict, task_manager
from jaxllada.apps.tasks.needs import needs_of
from jaxllada.common.errors import UserError
from tests.common.task_rows import NEEDS, TASKS, write_words

README = (OWN / "README.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in README.splitlines()
    if re.match(r"\| `\w.*` .*\| [\w-]+/[\w-]+ \|", line)
]


def definition(task):
    config = load_yaml(task_manager().task_index[task].yaml_path, resolve_func=False)
    for key in ("tag", "group", "task_list"):
        config.pop(key, None)
    return TaskConfig(**config)


def test_the_table_has_all_tasks_that_are_tested():
    rows = {TASKS[row[0].split("`")[1]].path for row in ROWS}
    assert {known.path for known in TASKS.values()} == rows


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_line_of_the_table_is_the_definition(row):
    name, *rest = re.findall(r"`([^`]+)`", row[0])
    config = definition(name)
    needs = needs_of(SimpleNamespace(config=config))
    assert row[1:5] == [
        config.dataset_path,
        config.dataset_name or "",
        needs.asked,
        needs.shown or "",
    ]
    columns, there = set(row[5].split(", ")), set(TASKS[name].rows[needs.asked][0])
    assert columns <= there
    assert needs.columns | (set() if needs.is_made else needs.words) <= columns
    if rest:
        number, group = int(re.search(r"and (\d+) more", row[0])[1]) + 1, rest[0]
        assert len(members(group)) == number
        assert name in members(group)


def members(name):
    """The tasks of a group, through groups and tags."""
    entry = task_manager().task_index.get(name)
    if entry is None or entry.kind is Kind.TASK:
        return [name]
    if entry.kind is Kind.TAG:
        return [task for tagged in entry.tags for task in members(tagged)]
    return [task for item in load_yaml(entry.yaml_path)["task"] for task in _inside(item)]


def _inside(item):
    if isinstance(item, str):
        return members(item)
    inner = item.get("task")
    if isinstance(inner, list):
        return [task for one in inner for task in _inside(one)]
    return members(inner or item["group"])


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_data_without_one_of_the_columns_are_refused(row, tmp_path):
    name = row[0].split("`")[1]
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    known = TASKS[name]
    folder = tmp_path / known.path / (known.name or "")
    folder.mkdir(parents=True)
    write_words(tmp_path)
    for column in row[5].split(", "):
        for split, rows in known.rows.items():
            kept = [{key: one[key] for key in one if key != column} for one in rows]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(o) + "\n" for o in kept))
        with pytest.raises(UserError, match=name) as told:
            ask(task_dict([name], data=str(tmp_path))["tasks"][name])
        assert repr(column) in str(told.value)


def ask(task):
    task.set_fewshot_seed(0)
    task.build_all_requests()
