"""Data saved from a hub is exactly what tasks need, and gives the same tasks without the hub.

The hub is a local server; the clients are the real ones, in a process of their own, since they read
its address when they are imported.
"""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from jaxllada.apps.tasks.download import unpack
from jaxllada.apps.tasks.local_tasks import download, task_dict
from jaxllada.common.errors import UserError
from tests.common.task_rows import NEEDS, TASKS
from tests.common.test_local_data import put, table
from tests.hub_stand_in import hub

ROOT = Path(__file__).parents[2]
FEATURES = Features(
    {
        "question": Value("string"),
        "subject": Value("string"),
        "choices": List(Value("string")),
        "answer": ClassLabel(names=list("ABCD")),
    }
)
SUBJECTS = ("law", "civil_law")
FETCH = """
import json, sys
from jaxllada.apps.tasks.local_tasks import download, task_dict
from jaxllada.common.errors import UserError
saved = download(sys.argv[2:], sys.argv[1])
found = {"saved": saved.rows, "failed": saved.failed, "told": []}
for name in ("gsm8k", "ceval-valid_law"):
    try:
        task_dict([name])
    except UserError as error:
        found["told"].append(str(error))
from huggingface_hub import constants
constants.HF_HUB_OFFLINE = True  # as the variable sets it when the client is imported
found["cached"] = len(task_dict(["mmlu_anatomy"])["tasks"]["mmlu_anatomy"].eval_docs)
print("FOUND" + json.dumps(found))
"""


def archive(rows, other):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for split, part in rows.items():
            file.writestr(f"{split}/law_{split}.csv", table(part))
            file.writestr(f"{split}/{other}_{split}.csv", table(part[:1]))
        file.writestr("__MACOSX/val/law_val.csv", "x")
        file.writestr("../outside.csv", "x")
        file.writestr("run.py", "x")
    return out.getvalue()


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """(folder of the data, what was printed, requests) after a download of three data sets."""
    root, folder = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("data") / "saved"
    card = "---\nconfigs:\n"
    for subject in ("anatomy", "high_school_physics", "virology"):
        card += f"- config_name: {subject}\n  data_files:\n"
        rows = TASKS.get(f"mmlu_{subject}", TASKS["mmlu_anatomy"]).rows
        for split, part in {**rows, "validation": rows["dev"]}.items():
            file = root / "cais/mmlu" / subject / f"{split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            Dataset.from_list(part, features=FEATURES).to_parquet(file)
            card += f"  - {{split: {split}, path: {subject}/{split}-*}}\n"
    put(root / "cais/mmlu/README.md", card + "---\n")
    put(root / "ceval/ceval-exam/ceval-exam.py", "raise SystemExit")
    put(
        root / "ceval/ceval-exam/ceval-exam.zip",
        archive(TASKS["ceval-valid_law"].rows, "civil_law"),
    )
    keys = {"HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
    with hub(root) as (address, asked):
        names = ["gsm8k", "mmlu_anatomy", "mmlu_high*physics", "reversal_poems", "ceval-valid_law"]
        done = subprocess.run(
            [sys.executable, "-c", FETCH, str(folder), *names],
            env={**os.environ, **keys, "HF_ENDPOINT": address},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.partition("FOUND")[2]), asked


@pytest.mark.slow
def test_the_splits_that_tasks_need_are_saved_and_no_others(fetched):
    folder, found, asked = fetched
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    mmlu = {
        f"cais/mmlu/{subject}/{split}.parquet"
        for subject in ("anatomy", "high_school_physics")
        for split in ("test", "dev")
    }
    law = {
        f"{split}/{name}_{split}.csv" for split in ("val", "dev") for name in ("law", "civil_law")
    }
    assert files == mmlu | {f"ceval/ceval-exam/{name}" for name in (*law, "outside.csv")}
    assert found["failed"].keys() == {"gsm8k", "reversal_poems"}
    assert "put poem_data.json" in found["failed"]["reversal_poems"]
    assert found["saved"]["cais/mmlu (anatomy)"] == {"test": 4, "dev": 5}
    assert found["saved"]["ceval/ceval-exam (law)"] == {"val": 4, "dev": 5}
    assert not [line for line in asked if "virology" in line and ".parquet" in line]
    assert found["cached"] == 4  # what was fetched once is found without the hub
    assert not (folder.parent / "outside.csv").exists()


@pytest.mark.slow
def test_saved_data_gives_the_tasks_of_the_data_sets_without_the_hub(fetched):
    names = ["mmlu_anatomy", "mmlu_high_school_physics", "ceval-valid_law"]
    tasks = task_dict(names, data=str(fetched[0]))["tasks"]
    for name in names:
        split = "val" if name.startswith("ceval") else "test"
        shown = [str(doc["question"]) for doc in tasks[name].eval_docs]
        assert shown == [row["question"] for row in TASKS[name].rows[split]]
    assert tasks["mmlu_anatomy"].eval_docs.features == FEATURES


@pytest.mark.slow
def test_what_the_hub_lacks_or_makes_by_script_is_told_with_a_way_out(fetched):
    of_missing, of_script = fetched[1]["told"]
    assert "gsm8k" in of_missing
    assert "HF_ENDPOINT" in of_missing
    assert "--download DIR --tasks gsm8k" in of_missing
    assert "scripts are no longer supported" in of_script
    assert "put them into DIR/ceval-exam yourself" in of_script


def test_nothing_is_asked_for_a_folder_or_task_that_is_wrong(tmp_path):
    put(tmp_path / "file", "x")
    with pytest.raises(UserError, match="download=.*file is a file"):
        download(["gsm8k"], str(tmp_path / "file"))
    with pytest.raises(UserError, match="'gsm9k' is no task"):
        download(["gsm8k", "gsm9k"], str(tmp_path / "new"))


def test_data_that_is_not_on_the_hub_may_be_there_already(tmp_path):
    rows, failed = download(["reversal_poems"], str(tmp_path / "new"))
    assert not rows
    assert "put poem_data.json" in failed["reversal_poems"]
    put(tmp_path / "poem_pairs.json", '[{"first": "a", "second": "b"}]')
    assert download(["reversal_poems"], str(tmp_path)) == ({}, {})


def test_files_that_are_no_archives_keep_their_names(tmp_path):
    put(tmp_path / "held", "a,b\n")
    unpack(tmp_path / "held", tmp_path / "out", Path("val/law_val.csv"))
    assert (tmp_path / "out/val/law_val.csv").read_text() == "a,b\n"


def test_what_scoring_needs_besides_is_saved_and_asked_for_first(tmp_path, monkeypatch):
    nltk = pytest.importorskip("nltk")
    for package in NEEDS["ifeval"]:
        pytest.importorskip(package)
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.delenv("NLTK_DATA", raising=False)
    put(tmp_path / "ifeval/train.jsonl", json.dumps(TASKS["ifeval"].rows["train"][0]))
    with pytest.raises(UserError, match="ifeval: .* punkt_tab of NLTK: .*nltk.downloader -d"):
        task_dict(["ifeval"], data=str(tmp_path))

    def fetch(package, download_dir, quiet):
        (Path(download_dir) / "tokenizers" / package).mkdir(parents=True)
        return True

    whole = {"train": Dataset.from_list(TASKS["ifeval"].rows["train"])}
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: whole)
    monkeypatch.setattr(nltk, "download", lambda *_, **__: False)
    assert "punkt_tab" in download(["ifeval"], str(tmp_path / "saved")).failed["ifeval"]
    monkeypatch.setattr(nltk, "download", fetch)
    assert download(["ifeval"], str(tmp_path / "saved")).rows == {"google/IFEval": {"train": 1}}
    assert (
        len(task_dict(["ifeval"], data=str(tmp_path / "saved"))["tasks"]["ifeval"].eval_docs) == 1
    )
