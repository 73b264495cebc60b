"""Data of tasks in a folder: every layout and format gives the same rows, and faults are named."""

import bz2
import csv
import gzip
import io
import json

import pytest
from datasets import Dataset, DatasetDict, Features, Value

from jaxllada.apps.tasks.local_tasks import task_dict
from jaxllada.common.errors import UserError
from tests.common.task_rows import GSM8K, TASKS

CEVAL = TASKS["ceval-valid_law"].rows
CMMLU = TASKS["cmmlu_anatomy"].rows
PIQA = TASKS["piqa"].rows


def put(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(rows, delimiter=","):
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def parquet(rows):
    out = io.BytesIO()
    Dataset.from_list(rows).to_parquet(out)
    return out.getvalue()


def docs(name, folder, **keys):
    return list(task_dict([name], data=str(folder), **keys)["tasks"][name].eval_docs)


def requests(name, folder):
    task = task_dict([name], data=str(folder))["tasks"][name]
    task.set_fewshot_seed(1)
    task.build_all_requests()
    return [instance.args for instance in task.instances]


GSM8K_FILES = {
    "lines": {"gsm8k/test.jsonl": lines(GSM8K)},
    "list": {"gsm8k/test.json": json.dumps(GSM8K)},
    "csv": {"gsm8k/test.csv": "\ufeff" + table(GSM8K)},
    "tsv": {"gsm8k/test.tsv": table(GSM8K, "\t")},
    "gz": {"gsm8k/test.jsonl.gz": gzip.compress(lines(GSM8K).encode())},
    "bz2": {"gsm8k/test.csv.bz2": bz2.compress(table(GSM8K).encode())},
    "parquet": {"gsm8k/test-00000-of-00001.parquet": parquet(GSM8K)},
    "two parts": {
        "openai/gsm8k/main/test-00000-of-00002.parquet": parquet(GSM8K[:2]),
        "openai/gsm8k/main/test-00001-of-00002.parquet": parquet(GSM8K[2:]),
    },
    "one file": {"gsm8k.jsonl": lines(GSM8K)},
    "no split in the name": {"openai__gsm8k/main/rows.jsonl": lines(GSM8K)},
    "folder of the split": {"gsm8k/main/test/rows.jsonl": lines(GSM8K)},
    "files of the configuration": {"gsm8k/main.jsonl": lines(GSM8K)},
    "beside other versions": {
        "gsm8k/test.jsonl": lines(GSM8K),
        "gsm8k/test_socratic.jsonl": lines(GSM8K[:1]),
        "gsm8k/validation.jsonl": "broken, but nobody asks for it",
    },
    "an object a file": {
        f"gsm8k/test/main/{i}.json": json.dumps(row, indent=1) for i, row in enumerate(GSM8K)
    },
    "as its card says": {
        "openai/gsm8k/README.md": "---\nconfigs:\n- config_name: main\n  data_files:\n"
        "  - split: test\n    path: grade/school.jsonl\n---\n",
        "openai/gsm8k/grade/school.jsonl": lines(GSM8K),
    },
}


@pytest.mark.parametrize("files", GSM8K_FILES.values(), ids=GSM8K_FILES)
def test_every_layout_gives_the_rows(files, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for name, content in files.items():
        put(tmp_path / "data" / name, content)
    assert docs("gsm8k", tmp_path / "data", num_fewshot=0) == GSM8K


@pytest.mark.parametrize("folder", ["gsm8k", "openai/gsm8k/main"])
def test_folders_of_save_to_disk_are_read(folder, tmp_path):
    splits = {"train": Dataset.from_list(GSM8K[3:]), "test": Dataset.from_list(GSM8K[:3])}
    DatasetDict(splits).save_to_disk(tmp_path / folder)
    task = task_dict(["gsm8k"], data=str(tmp_path))["tasks"]["gsm8k"]
    assert (list(task.eval_docs), list(task.fewshot_docs())) == (GSM8K[:3], GSM8K[3:])


@pytest.mark.parametrize(
    ("name", "rows", "places"),
    [
        ("ceval-valid_law", CEVAL, ("ceval-exam/{0}/law_{0}.csv", "ceval-exam/{0}/law/a.csv")),
        ("cmmlu_anatomy", CMMLU, ("cmmlu/{0}/anatomy.csv", "haonan-li/cmmlu/anatomy_{0}.csv")),
    ],
)
def test_layouts_of_the_chinese_exams_ask_the_same(name, rows, places, tmp_path):
    asked = []
    for i, place in enumerate(places):
        for split, part in rows.items():
            put(tmp_path / str(i) / place.format(split), table(part))
            # Another subject whose name ends alike is not taken for it.
            other = place.format(split).replace("law", "civil_law").replace("ana", "odd_ana")
            put(tmp_path / str(i) / other, table(part[:1]))
        asked.append(requests(name, tmp_path / str(i)))
    for split, part in rows.items():
        put(tmp_path / f"lines/{name}/{split}.jsonl", lines(part))
    asked.append(requests(name, tmp_path / "lines"))
    assert asked[0] == asked[1] == asked[2]
    assert len(asked[0]) == 16


def test_text_files_keep_text_and_count_labels(tmp_path):
    rows = [row | {"sol1": "NA", "sol2": "1.0"} for row in PIQA["validation"]]
    put(tmp_path / "piqa/validation.csv", table(rows))
    assert docs("piqa", tmp_path) == rows
    put(tmp_path / "arc_challenge/test.jsonl", lines(TASKS["arc_challenge"].rows["test"]))
    assert docs("arc_challenge", tmp_path) == TASKS["arc_challenge"].rows["test"]


def test_column_types_of_parquet_files_are_kept(tmp_path):
    features = Features({"question": Value("string"), "answer": Value("large_string")})
    (tmp_path / "gsm8k").mkdir()
    Dataset.from_list(GSM8K, features=features).to_parquet(tmp_path / "gsm8k/test.parquet")
    task = task_dict(["gsm8k"], data=str(tmp_path), num_fewshot=0)["tasks"]["gsm8k"]
    assert task.eval_docs.features == features


def test_the_dev_split_stands_for_validation_only_where_it_is_not_the_examples(tmp_path):
    put(tmp_path / "piqa/dev.jsonl", lines(PIQA["validation"]))
    assert docs("piqa", tmp_path) == PIQA["validation"]
    put(tmp_path / "ceval-exam/law/dev.csv", table(CEVAL["dev"]))
    with pytest.raises(UserError, match="ceval-valid_law: .*law has no split 'val', only dev"):
        docs("ceval-valid_law", tmp_path)


BAD = {
    "nothing there": (
        {},
        "no data for gsm8k, which reads openai/gsm8k \\(main\\); looked for gsm8k",
    ),
    "no file": ({"gsm8k/notes.md": "x"}, "gsm8k has no .jsonl, .json, .csv"),
    "other columns": (
        {"gsm8k/test.jsonl": '{"question": "q", "solution": "s"}'},
        "gsm8k: .*/gsm8k/test.jsonl has no column 'answer'; it has question, solution",
    ),
    "a value missing": (
        {"gsm8k/test.jsonl": lines([*GSM8K, {"question": "q"}])},
        "gsm8k/test.jsonl: 1 of 7 rows have no 'answer'",
    ),
    "a broken line": ({"gsm8k/test.jsonl": '{"question": '}, "test.jsonl could not be read: "),
    "no objects": ({"gsm8k/test.json": "[1, 2]"}, "test.json could not be read: expected objects"),
    "mixed types": (
        {"gsm8k/test.jsonl": lines([*GSM8K, {"question": 5, "answer": ["a"]}])},
        "gsm8k/test.jsonl could not be read",
    ),
    "too many fields": ({"gsm8k/test.csv": "question,answer\na,b,c\n"}, "more fields than the fi"),
    "empty": ({"gsm8k/test.csv": "question,answer\n"}, "test.csv could not be read"),
    "two formats": (
        {"gsm8k/test.jsonl": lines(GSM8K), "gsm8k/test.csv": table(GSM8K)},
        "gsm8k: which of test.csv, test.jsonl holds the split test",
    ),
    "two files": (
        {"gsm8k/a.jsonl": lines(GSM8K), "gsm8k/b.jsonl": lines(GSM8K)},
        "gsm8k: which of a.jsonl, b.jsonl holds the split test",
    ),
    "no folder of its own": ({"test.jsonl": lines(GSM8K)}, "files of one task belong in a folder"),
    "files that differ": (
        {"gsm8k/test/a.jsonl": lines(GSM8K), "gsm8k/test/b.jsonl": '{"question": 1}'},
        "a.jsonl and 1 more do not go together",
    ),
}


@pytest.mark.parametrize(("files", "told"), BAD.values(), ids=BAD)
def test_a_fault_is_told_with_task_and_file(files, told, tmp_path):
    for name, content in files.items():
        put(tmp_path / name, content)
    with pytest.raises(UserError, match=told) as error:
        task_dict(["gsm8k"], data=str(tmp_path), num_fewshot=0)
    assert "gsm8k" in str(error.value)
    assert "\n" not in str(error.value)


def test_examples_that_are_asked_for_have_to_be_there(tmp_path):
    put(tmp_path / "gsm8k/test.jsonl", lines(GSM8K))
    task_dict(["gsm8k"], data=str(tmp_path), num_fewshot=0)
    with pytest.raises(UserError, match="no split 'train', only test for 5 examples; 0 need none"):
        task_dict(["gsm8k"], data=str(tmp_path))


def test_code_of_a_task_that_misses_a_column_is_told_with_those_there(tmp_path):
    put(tmp_path / "hellaswag/validation.jsonl", '{"ctx": "a", "label": "0"}')
    told = "hellaswag cannot be made from .*hellaswag/validation.jsonl.*: KeyError: 'ctx_a'"
    with pytest.raises(UserError, match=told):
        task_dict(["hellaswag"], data=str(tmp_path))


def test_a_row_that_cannot_be_asked_is_told_with_its_number(tmp_path):
    rows = [dict(row) for row in CMMLU["test"]]
    rows[2]["Answer"] = "E"
    put(tmp_path / "cmmlu/anatomy/test.jsonl", lines(rows))
    put(tmp_path / "cmmlu/anatomy/dev.jsonl", lines(CMMLU["dev"]))
    task = task_dict(["cmmlu_anatomy"], data=str(tmp_path))["tasks"]["cmmlu_anatomy"]
    task.set_fewshot_seed(1)
    told = "cmmlu_anatomy: .*anatomy/test.jsonl, row 2: ValueError: 'E' is not in list"
    with pytest.raises(UserError, match=told):
        task.build_all_requests()


def test_the_folder_has_to_be_there(tmp_path):
    with pytest.raises(UserError, match="data=.*nowhere: no such folder"):
        task_dict(["gsm8k"], data=str(tmp_path / "nowhere"))
