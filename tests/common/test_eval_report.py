"""Records of evaluations, from what lm_eval itself returns for small tasks on local data."""

import importlib.metadata
import json
import math
import statistics
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxllada.__main__ import main
from jaxllada.apps.evaluation.beside import beside, difference_error, read_all, rows_of
from jaxllada.apps.evaluation.files import read_runs, read_scores, write_run
from jaxllada.apps.evaluation.lines import lines_of, remarks
from jaxllada.apps.evaluation.report import Cost, environment, leaves_of, record, stored_type
from jaxllada.apps.evaluation.tables import terminal
from jaxllada.common.config.recipes import Recipe
from jaxllada.common.errors import UserError

pytest.importorskip("lm_eval")

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{c}}}}"
doc_to_target: y
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 2.0}}
"""
SUMS = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}="
doc_to_target: "{{{{a}}}}"
generation_kwargs: {{until: ["\\n"]}}
filter_list:
  - {{name: strict, filter: [{{function: regex, regex_pattern: "^([0-9]+)$"}}, {{function: take_first}}]}}
  - {{name: loose, filter: [{{function: regex, regex_pattern: "([0-9]+)"}}, {{function: take_first}}]}}
metric_list: [{{metric: exact_match}}]
metadata: {{version: 1.0}}
"""  # noqa: E501
GROUP = """
group: letters
task: [alpha, beta]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
metadata: {version: 1.0}
"""
RECIPE = Recipe(
    name="sums@own", tasks=("sums",), sampling={"steps": 16}, metric="exact_match,strict",
    published=62.5, harness="opencompass", model="some/Model-8B", note="other prompts",
)  # fmt: skip
COST = Cost(
    requests=5, kept=2, answers=5, model_calls=40, answer_calls=80, response_tokens=60,
    sampling_seconds=15, wall_seconds=20.5,
)  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What lm_eval returns for a group and a task that answers: by the sums that are wrong."""
    from lm_eval.api.model import LM
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    home = tmp_path_factory.mktemp("tasks")
    for name, count in (("alpha", 7), ("beta", 5)):
        rows = [{"q": f"{name} {i}", "c": [" a", " bb"], "y": i % 2} for i in range(count)]
        _lines(home / f"{name}.jsonl", rows)
        (home / f"{name}.yaml").write_text(CHOICE.format(name=name, data=home / f"{name}.jsonl"))
    _lines(home / "sums.jsonl", [{"q": f"{i}+1", "a": str(i + 1)} for i in range(6)])
    (home / "sums.yaml").write_text(SUMS.format(data=home / "sums.jsonl"))
    (home / "letters.yaml").write_text(GROUP)

    class Toy(LM):
        """Always the first option; sums right but for those in `wrong`."""

        wrong: frozenset[int]

        def loglikelihood(self, requests):
            return [(-len(one.args[1]) / 1.0, False) for one in requests]

        def loglikelihood_rolling(self, requests):
            raise AssertionError

        def generate_until(self, requests):
            numbers = [int(one.args[0].partition("+")[0]) for one in requests]
            return [f"{n + 1}{'!' if n in self.wrong else ''}" for n in numbers]

    manager = TaskManager(include_path=str(home), include_defaults=False)
    found = []
    for wrong in ({0, 1}, {1, 2, 3}):
        model = Toy()
        model.wrong = frozenset(wrong)
        tasks = manager.load(["letters", "sums"])
        found.append(evaluate(model, tasks, limit=5, bootstrap_iters=2))
    return found


def _lines(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _record(outcome, *, recipe=RECIPE, name="sums@own", tasks=("sums",), **changes):
    given = {
        "protocol": {"model": "here/model", "sampling": {"sums": {"steps": 16, "cache": "none"}}},
        "cost": COST,
        "environment": environment(backend="jaxllada", hardware="1 x cpu", dtype="float32"),
    }
    return record(
        outcome, outcome["samples"], name=name, tasks=tasks, recipe=recipe, **given | changes
    )


def test_a_line_is_the_published_metric_in_percent_beside_its_score(outcomes):
    (line,) = lines_of(_record(outcomes[0]))
    assert (line.task, line.metric, line.published) == ("sums", "exact_match,strict", 62.5)
    assert line.score == pytest.approx(60)  # three of five are right by the strict filter
    values = [1.0, 1.0, 1.0, 0.0, 0.0]
    assert line.stderr == pytest.approx(100 * statistics.stdev(values) / math.sqrt(5))
    assert (line.documents, line.is_limited) == (5, True)
    table = terminal([_record(outcomes[0])])
    assert "62.5" in table
    assert "-2.5" in table


def test_without_a_recipe_all_metrics_of_what_was_asked_for_are_shown(outcomes):
    run = _record(outcomes[0], recipe=None, name="letters,sums", tasks=("letters", "sums"))
    shown = [(line.task, line.metric) for line in lines_of(run)]
    assert sorted(shown) == [
        ("letters", "acc,none"), ("sums", "exact_match,loose"), ("sums", "exact_match,strict"),
    ]  # fmt: skip
    every = [(line.task, line.metric) for line in lines_of(run, every=True)]
    assert ("alpha", "acc_norm,none") in every


def test_tasks_of_a_file_or_a_tag_are_shown_by_their_own_names(outcomes):
    run = _record(outcomes[0], recipe=None, name="own", tasks=("folder/own.yaml",))
    assert sorted({line.task for line in lines_of(run)}) == ["letters", "sums"]
    run = _record(outcomes[0], recipe=None, name="own", tasks=("letters", "sums", "beta"))
    assert sorted({line.task for line in lines_of(run)}) == ["beta", "letters", "sums"]


def test_a_group_counts_the_documents_below_it(outcomes):
    run = _record(outcomes[0], recipe=None, name="letters", tasks=("letters",))
    entry = run["results"]["letters"]
    assert entry["subtasks"] == leaves_of("letters", outcomes[0]) == ["alpha", "beta"]
    assert (entry["documents"], entry["all_documents"]) == (10, 12)
    assert run["results"]["beta"]["documents"] == run["results"]["beta"]["all_documents"] == 5


def test_only_shares_are_percent(outcomes):
    values = {
        "acc,none": 0.5, "word_perplexity,none": 0.9, "bits_per_byte,none": 0.7, "bleu,none": 0.4,
        "count,none": 3.0, "distance,none": 0.2, "acc,broken": math.nan,
        "acc_stderr,none": "N/A",
    }  # fmt: skip
    higher = {"acc": True, "word_perplexity": False, "bits_per_byte": False, "distance": False}
    outcome = {**outcomes[0], "results": {"sums": values}, "higher_is_better": {"sums": higher}}
    run = _record(outcome, recipe=None, name="sums")
    lines = lines_of(run)
    cells = [row.split() for row in terminal([run]).splitlines() if row.startswith("sums  sums")]
    assert {row[2]: row[3] for row in cells} == {
        "acc,none": "50.0", "word_perplexity,none": "0.9", "bits_per_byte,none": "0.7",
        "bleu,none": "0.4", "count,none": "3", "distance,none": "0.2",
    }  # fmt: skip
    assert {line.metric: line.score for line in lines} == {
        "acc,none": 50, "word_perplexity,none": 0.9, "bits_per_byte,none": 0.7, "bleu,none": 0.4,
        "count,none": 3, "distance,none": 0.2,
    }  # fmt: skip
    assert {line.stderr for line in lines} == {None}


def test_remarks_say_why_a_score_need_not_be_the_published_one(outcomes):
    said = "; ".join(remarks(_record(outcomes[0], changed=["steps", "cache"])))
    assert "5 of 6 documents" in said
    assert "another harness, opencompass" in said
    assert "published for some/Model-8B" in said
    assert "other prompts" in said
    assert "changed by you: cache, steps" in said
    same = _record(outcomes[0], protocol={"model": "models/model-8b"})
    assert "published for" not in "; ".join(remarks(same))
    lm_eval = replace(RECIPE, harness="lm_eval", metric="acc,none")
    said = "; ".join(remarks(_record(outcomes[0], recipe=lm_eval)))
    assert "harness" not in said
    assert "no metric acc,none: there are exact_match,loose, exact_match,strict" in said


def test_the_hash_of_prompts_is_theirs_and_not_of_answers_or_their_order(outcomes):
    first, second = (_record(outcome)["results"] for outcome in outcomes)
    assert first["sums"]["prompts"] == second["sums"]["prompts"]
    assert first["sums"]["prompts"] != first["alpha"]["prompts"] != first["beta"]["prompts"]
    samples = outcomes[0]["samples"]["sums"]
    turned = {**outcomes[0], "samples": {**outcomes[0]["samples"], "sums": samples[::-1]}}
    assert _record(turned)["results"]["sums"]["prompts"] == first["sums"]["prompts"]
    asked = [{**row, "arguments": [(row["arguments"][0][0] + " ",)]} for row in samples]
    other = {**outcomes[0], "samples": {**outcomes[0]["samples"], "sums": asked}}
    assert _record(other)["results"]["sums"]["prompts"] != first["sums"]["prompts"]


def test_the_record_holds_versions_and_the_speed_of_response_tokens(outcomes):
    run = _record(outcomes[0])
    assert run["cost"]["tokens_per_second"] == 4.0
    assert run["cost"]["tokens_per_call"] == 0.75
    (row,) = [line for line in terminal([run]).splitlines() if "2 of 5" in line]
    assert row.split()[1:6] == ["5", "12.0", "16.0", "0.75", "4.0"]
    assert run["environment"]["versions"]["lm_eval"] == importlib.metadata.version("lm_eval")
    assert run["results"]["alpha"]["version"] == 2.0
    assert Cost(requests=3, canvases=12, scoring_seconds=2.0).tokens_per_second is None
    assert json.loads(json.dumps(run)) == run


def test_the_type_of_stored_weights_is_that_of_most_of_them(tmp_path):
    assert stored_type(tmp_path) == "as stored"
    save_file({"a": np.zeros((8, 8), ml_dtypes.bfloat16)}, tmp_path / "1.safetensors")
    save_file({"b": np.zeros(3, np.float32)}, tmp_path / "2.safetensors")
    assert stored_type(tmp_path) == "bfloat16"


def test_samples_join_the_filters_of_a_document_and_average_to_the_score(outcomes, tmp_path):
    run = _record(outcomes[0])
    write_run(tmp_path, run, outcomes[0]["samples"])
    (path,) = tmp_path.glob("samples/*/sums.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["doc_id"] for row in rows] == list(range(5))
    assert rows[0]["filtered_resps"] == {"strict": ["[invalid]"], "loose": ["1"]}
    assert rows[0]["metrics"] == {"exact_match,strict": 0.0, "exact_match,loose": 1.0}
    for task, entry in run["results"].items():
        for metric, value in entry["metrics"].items():
            if "subtasks" not in entry:
                scores = read_scores(tmp_path, run["name"], task, metric)
                assert scores is not None
                assert statistics.fmean(scores.values()) == pytest.approx(value["value"])


def test_a_run_replaces_that_of_its_name_and_leaves_others(outcomes, tmp_path):
    write_run(tmp_path, _record(outcomes[0]), {})
    write_run(tmp_path, _record(outcomes[0], recipe=None, name="letters", tasks=("letters",)), {})
    write_run(tmp_path, _record(outcomes[1]), {})
    first, second = read_runs(tmp_path)
    assert (first["name"], second["name"]) == ("sums@own", "letters")
    assert first["results"]["sums"]["metrics"]["exact_match,strict"]["value"] == pytest.approx(0.4)
    assert read_runs(tmp_path / "results.json") == [first, second]
    text = (tmp_path / "results.md").read_text()
    assert "| sums@own | sums | exact_match,strict | 40.0" in text
    assert "| environment.versions.lm_eval |" in text
    assert "| sampling.steps | 16 |" in text


@pytest.fixture
def folders(outcomes, tmp_path):
    for name, outcome in zip(("a", "b"), outcomes, strict=True):
        cache = "none" if name == "a" else "dual"
        protocol = {"model": "m", "sampling": {"sums": {"steps": 16, "cache": cache}}}
        rate = replace(COST, sampling_seconds=15 if name == "a" else 3)
        run = _record(outcome, protocol=protocol, cost=rate)
        write_run(tmp_path / name, run, outcome["samples"])
        run = _record(outcome, recipe=None, name="letters", tasks=("letters",), cost=rate)
        write_run(tmp_path / name, run, outcome["samples"])
    return tmp_path


def test_the_error_of_a_difference_is_that_of_equal_documents(folders):
    both = read_all([str(folders / "a"), str(folders / "b")])
    (row,) = [row for row in rows_of(both) if row.run == "sums@own"]
    # Right are 2, 3, 4 and then 0, 4: document by document +1, 0, -1, -1, 0.
    expected = 100 * statistics.stdev([1, 0, -1, -1, 0]) / math.sqrt(5)
    assert difference_error(both[0], both[1], row) == pytest.approx(expected)
    (same,) = [row for row in rows_of(both) if row.run == "letters"]
    assert difference_error(both[0], both[1], same) == 0
    text = beside(both)
    assert f"-20.0 \u00b1 {expected:.1f}" in text
    assert "sampling.cache: none | dual (sums@own)" in text
    assert "sampling.steps" not in text
    assert "4.0 (0.75)  20.0 (0.75)" in text


def test_other_prompts_or_missing_samples_share_no_error(folders):
    names = [str(folders / "a"), str(folders / "b")]
    both = read_all(names)
    (row,) = [row for row in rows_of(both) if row.run == "sums@own"]
    lines = [line for line in row.lines if line is not None]
    apart = math.hypot(*(line.stderr or 0 for line in lines))
    both[1].runs[0]["results"]["sums"]["prompts"] = "others"
    assert difference_error(both[0], both[1], row) is None
    assert f"-20.0 \u00b1 {apart:.1f}" in beside(both)
    both = read_all(names)
    samples = folders / "b" / "samples" / "sums@own" / "sums.jsonl"
    samples.write_text("".join(samples.read_text().splitlines(keepends=True)[1:]))
    assert difference_error(both[0], both[1], row) is None
    samples.unlink()
    assert difference_error(both[0], both[1], row) is None


def test_the_verb_shows_one_folder_or_several_and_draws(folders, capsys):
    pytest.importorskip("matplotlib")
    assert main(["results", str(folders / "a")]) == 0
    assert "2 of 5" in capsys.readouterr().out
    assert main(["results", str(folders / "a"), "--markdown"]) == 0
    assert capsys.readouterr().out.strip() == (folders / "a" / "results.md").read_text().strip()
    picture = folders / "c.svg"
    command = ["results", str(folders / "a"), str(folders / "b"), "--out", str(picture)]
    assert main(command) == 0
    assert "b - a" in capsys.readouterr().out
    drawn = picture.read_text()
    assert drawn.count('<g id="axes_') == 2  # scores and speeds
    assert "<!-- published (opencompass) -->" in drawn
    assert "<!-- published -->" not in drawn


def test_what_is_no_result_is_told(tmp_path, capsys):
    for content, message in (
        (None, "holds no results.json"),
        ("{", "is not JSON"),
        ('{"results": {}}', "format=None is not 1"),
        ('{"format": 2, "runs": []}', "format=2 is not 1"),
    ):
        if content is not None:
            (tmp_path / "results.json").write_text(content)
        with pytest.raises(UserError, match=message):
            read_runs(tmp_path)
    assert main(["results", str(tmp_path), str(tmp_path), "--markdown"]) == 2
    assert "markdown=true with 2 folders" in capsys.readouterr().err
    assert main(["results", str(tmp_path), "--out", "x.gif"]) == 2
    assert "out=x.gif" in capsys.readouterr().err
