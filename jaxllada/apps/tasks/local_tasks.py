"""Builds the tasks of an evaluation, from the Hub or from a folder with their data.

A task is named as lm_eval names it (`gsm8k`, the group `mmlu`, a tag), or is one of the package's
own (`jaxllada/tasks`), a YAML file, or a file of questions such as the verb `score` reads.
"""

import contextlib
import fnmatch
import functools
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxllada.apps.tasks import index as task_index
from jaxllada.apps.tasks.code_runs import own_code_eval
from jaxllada.apps.tasks.download import Download
from jaxllada.apps.tasks.local_data import LocalData
from jaxllada.apps.tasks.sources import Folder, Hub, TaskSource
from jaxllada.apps.tasks.trouble import making
from jaxllada.common.errors import UserError, nearest

if TYPE_CHECKING:
    from lm_eval.tasks.manager import TaskDict, TaskManager

OWN = Path(__file__).parents[2] / "tasks"
QUESTIONS = (".jsonl", ".json")
SEED, NUMPY_SEED = 0, 1234
"""What lm_eval seeds `random` and NumPy with; some tasks shuffle their options with them."""


def task_dict(
    tasks: Sequence[str],
    *,
    data: str = "",
    num_fewshot: int | None = None,
) -> "TaskDict":
    """Builds the tasks with their data: what `lm_eval.evaluate(task_dict=...)` takes.

    `data` is a folder as `LocalData` describes it; then nothing is asked of the network. Without
    it, data comes from the Hub or its cache. `num_fewshot` is only checked against the data here;
    the caller sets it. Tasks that shuffle do so as if each was loaded alone, whatever the order.

    Returns {"tasks": {name: Task}, "groups": {name: Group}, "group_map": {group: children}}.
    Raises `UserError` for an unknown name, data that is missing or unreachable, and columns or
    splits a task needs and its data lacks.
    """
    source = Folder(LocalData.open(data), num_fewshot) if data else Hub(num_fewshot)
    return load(tasks, source)


class Saved(NamedTuple):
    """What `download` did."""

    rows: dict[str, dict[str, int]]
    """{data set: {split: rows}} of what was written."""
    failed: dict[str, str]
    """{task: reason} of what could not be had."""


def download(tasks: Sequence[str], folder: str) -> Saved:
    """Fetches the data that the tasks need and writes it where `task_dict(data=folder)` finds it.

    One Parquet file for each split that is asked or shown, `folder/cais/mmlu/anatomy/test.parquet`,
    with the column types of the data set; the files themselves of a data set that a script makes.
    What the folder has already of data that is not on the Hub is let be. A task that fails leaves
    the others alone. Raises `UserError` for an unknown task before anything is asked.
    """
    target = Path(folder).expanduser()
    if target.exists() and not target.is_dir():
        raise UserError(f"download={folder} is a file: name a folder")
    index = dict(task_manager().task_index)
    for name in tasks:
        _spec(name, index)
    source, failed = Download(target), {}
    for name in tasks:
        try:
            load([name], source)
        except UserError as error:
            failed[name] = str(error)
    return Saved(source.saved, failed)


def load(tasks: Sequence[str], source: TaskSource) -> "TaskDict":
    """Builds the tasks with data from `source`; see `task_dict`."""
    if not tasks:
        raise UserError("tasks is not given: name tasks, groups, or files, with commas between")
    manager = task_manager()
    if not hasattr(manager, "_factory"):
        raise UserError("lm_eval is of a version whose tasks cannot be given data; 0.4.13 is known")
    known = manager._index
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        # Tasks of files are known for this call alone.
        manager._index, manager._factory = dict(known), _factory(source)
        return manager.load([spec for name in tasks for spec in _spec(name, manager._index)])
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"tasks={','.join(tasks)}: {' '.join(str(error).split())}") from error
    finally:
        manager._index = known
        random.setstate(state)
        np.random.set_state(numpy_state)  # noqa: NPY002


@functools.cache
def task_manager() -> "TaskManager":
    """lm_eval's manager of its tasks and this package's; raises `UserError` without lm_eval."""
    return task_index.task_manager([OWN])


def _spec(name: str, index: dict[str, Any]) -> list[Any]:
    """What lm_eval is asked to load for a name; raises `UserError` for one that is not known.

    Tasks of a file are added to the index.
    """
    if name in index:
        return [name]
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml") and path.is_file():
        name, entries = task_index.entries_of(path)
        index.update(entries)
        return [name]
    if path.suffix in QUESTIONS and path.is_file():
        return [questions_task(path)]
    if path.suffix in (".yaml", ".yml", *QUESTIONS):
        raise UserError(f"tasks: {name}: no such file")
    if found := fnmatch.filter(task_manager().all_subtasks, name):
        return found
    hint = nearest(name, index)
    raise UserError(f"tasks: {name!r} is no task, group, tag or pattern, and no file{hint}")


def questions_task(path: Path) -> dict[str, Any]:
    """A task of the questions that the verb `score` reads, with the same prompts and options."""
    from datasets import Dataset

    from jaxllada.apps.score import read_questions

    rows = read_questions(str(path))
    if rows[0].answer is None:
        raise UserError(f"tasks: {path}: the questions have no answer; a task needs them")
    table = Dataset.from_list([row._asdict() for row in rows])
    return {
        "task": path.stem,
        "custom_dataset": lambda **_: {"test": table},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "options",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "acc_bytes", "aggregation": "mean", "higher_is_better": True},
        ],
        "metadata": {"version": 1.0},
    }


def _factory(source: TaskSource) -> Any:
    """lm_eval's maker of tasks, whose tasks take their data from `source`."""
    from lm_eval.tasks import _factory as lm_eval_factory
    from lm_eval.tasks._factory import TaskFactory
    from lm_eval.tasks._index import Kind

    module: Any = lm_eval_factory

    class Factory(TaskFactory):
        def _build_group_members(self, *args: Any) -> Any:
            # Members that a group defines itself are made of the class that this module knows.
            before, module.ConfigurableTask = module.ConfigurableTask, source.reading()
            try:
                return super()._build_group_members(*args)
            finally:
                module.ConfigurableTask = before

        def _load_full_config(self, entry: Any, overrides: Any = None) -> dict[str, Any]:
            config = super()._load_full_config(entry, overrides)
            if entry.kind in (Kind.TASK, Kind.PY_TASK):
                name = config.get("task") or entry.name
                config["class"] = source.reading(config.get("class"), name)
            return config

        def _build_task(self, entry: Any, overrides: Any) -> Any:
            _begin_random()
            source.begin(entry.name)
            with making(entry.name, source.told), _for_code(entry):
                return super()._build_task(entry, overrides)

    return Factory()


def _begin_random() -> None:
    """Random numbers begin anew, also those of generators that modules of tasks keep."""
    random.seed(SEED)
    np.random.seed(NUMPY_SEED)  # noqa: NPY002
    kinds = (random.Random, np.random.Generator, np.random.RandomState)
    for name, module in list(sys.modules.items()):
        if name.startswith("lm_eval.tasks."):
            kept = [value for value in vars(module).values() if isinstance(value, kinds)]
            if kept:
                del sys.modules[name]  # it is read again for the next task


def _for_code(entry: Any) -> contextlib.AbstractContextManager[None]:
    """Our runner of programs for tasks that score code; the others are spared its imports."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(entry.yaml_path, resolve_func=False) if entry.yaml_path else entry.cfg or {}
    return own_code_eval() if config.get("unsafe_code") else contextlib.nullcontext()
