"""Tasks with data from a folder: the same prompts and scores as with the data sets themselves."""

import bz2
import csv
import gzip
import json
import random

import datasets
import lm_eval
import pytest
from datasets import Dataset, DatasetDict
from lm_eval.tasks import TaskManager

from jaxllada.apps.tasks.code_runs import own_code_eval
from jaxllada.apps.tasks.local_tasks import task_dict, task_manager
from tests.common.task_rows import NEEDS, TASKS, write_words


def write_json(folder, rows, ending=".jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in rows.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        if ending == ".json":
            lines = json.dumps(part)
        opener = {".gz": gzip.open, ".bz2": bz2.open}.get(ending[-4:].lstrip("l"), open)
        with opener(folder / f"{split}{ending}", "wt", encoding="utf-8") as file:
            file.write(lines)


def write_csv(file, rows, delimiter=","):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def oracle(rightly):
    """A model that knows the right answers, and gives them or avoids them."""
    from lm_eval.api.model import LM

    class Oracle(LM):
        def loglikelihood(self, requests):
            found = []
            for request in requests:
                is_right = request.args[1] == right_of(request)
                found.append((0.0 if is_right == rightly else -9.0, False))
            return found

        def generate_until(self, requests):
            return [right_of(request) if rightly else "" for request in requests]

        def loglikelihood_rolling(self, requests):
            raise NotImplementedError

    def right_of(request):
        if request.task_name == "winogrande":
            # The options end the contexts; the continuation is the same for both.
            ends = request.args[0].endswith(TASKS["winogrande"].right(request.doc))
            return request.args[1] if ends else "another"
        return TASKS[request.task_name].right(request.doc)

    return Oracle()


def scores(tasks, rightly, **keys):
    found = lm_eval.evaluate(
        lm=oracle(rightly),
        task_dict=tasks,
        bootstrap_iters=0,
        log_samples=False,
        confirm_run_unsafe_code=True,
        **keys,
    )
    names = ("acc,none", "exact_match,flexible-extract", "pass@1,create_test", "pass_at_1,none")
    names += ("exact_match,get-answer", "math_verify,none", "prompt_level_strict_acc,none")
    names += ("exact_match,custom-extract", "exact_match,get_response", "pass_at_1,extract_code")
    names += ("exact_match,remove_whitespace",)
    return {
        task: next(values[name] for name in names if name in values)
        for task, values in found["results"].items()
    }


@pytest.mark.parametrize("name", TASKS)
def test_a_model_that_knows_the_answers_is_right_and_one_that_avoids_them_wrong(name, tmp_path):
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    known = TASKS[name]
    write_json(tmp_path / known.path / (known.name or ""), known.rows)
    write_words(tmp_path)
    tasks = task_dict([name], data=str(tmp_path))
    assert scores(tasks, True) == {name: 1.0}
    assert scores(tasks, False) == {name: 0.0}


# gpqa_main_n_shot draws another order of the options each time its rows are asked for, in lm_eval
# even between asking and scoring.
ALIKE = [name for name in TASKS if name not in NEEDS and name != "gpqa_main_n_shot"]


@pytest.mark.parametrize("name", ALIKE)
def test_prompts_are_those_of_the_data_set_itself(name, tmp_path, monkeypatch):
    """Against lm_eval's own loading, with the data set handed to it as the Hub's cache holds it."""
    known = TASKS[name]
    write_json(tmp_path / "data" / known.path / (known.name or ""), known.rows)
    ours = task_dict([name], data=str(tmp_path / "data"))["tasks"][name]
    whole = {split: Dataset.from_list(rows) for split, rows in known.rows.items()}
    DatasetDict(whole).save_to_disk(tmp_path / "cached")
    cached = datasets.load_from_disk(tmp_path / "cached")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: cached)
    path = task_manager().task_index[name].yaml_path
    random.seed(0)
    with own_code_eval():
        theirs = TaskManager(include_defaults=False).load([str(path)])["tasks"][name]
    for task in (ours, theirs):
        task.set_fewshot_seed(1234)
        task.build_all_requests()
    assert [i.args for i in ours.instances] == [i.args for i in theirs.instances]
    assert {i.doc_id for i in ours.instances} == set(range(len(ours.eval_docs)))


def test_shuffled_options_do_not_depend_on_what_was_loaded_before(tmp_path):
    for known in (TASKS["gpqa_main_n_shot"], TASKS["gsm8k"]):
        write_json(tmp_path / known.path / known.name, known.rows)
    asked = []
    for names in (
        ["gpqa_main_n_shot", "gpqa_main_zeroshot"],
        ["gpqa_main_n_shot"],
        ["gsm8k", "gpqa_main_zeroshot", "gpqa_main_n_shot"],
    ):
        tasks = task_dict(names, data=str(tmp_path))["tasks"]
        asked.append({name: list(tasks[name].eval_docs) for name in names if name != "gsm8k"})
        # Asked again they are the same rows: scoring reads them a second time.
        assert list(tasks["gpqa_main_n_shot"].eval_docs) == asked[-1]["gpqa_main_n_shot"]
    assert asked[0] == asked[2]
    assert asked[1]["gpqa_main_n_shot"] == asked[0]["gpqa_main_n_shot"]
    orders = {name: [doc["choice1"] for doc in docs] for name, docs in asked[0].items()}
    assert orders["gpqa_main_n_shot"] != orders["gpqa_main_zeroshot"]  # they do shuffle
