"""The closing table of a run."""

import json

from jaxllada.common.summary import summary


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


BASELINES = {"step": 0, "uniform_bound": 8.318, "unigram_bound": 6.5}


def evaluation(step, bound):
    return {"step": step, "eval_bound": bound, "eval_standard_error": 0.08}


def test_the_first_and_the_last_evaluation_stand_beside_the_baselines(tmp_path):
    file = write(
        tmp_path / "metrics.jsonl",
        BASELINES,
        evaluation(0, 8.9),
        evaluation(500, 6.0),
        {"step": 900, "loss": 5.2},
        evaluation(1000, 5.25),
    )
    lines = summary(file).splitlines()
    assert [line.split()[-1] for line in lines[1:3]] == ["8.318", "6.500"]
    assert lines[3].endswith("8.900  +- 0.080")
    assert lines[4].startswith("this model, after 1,000 steps")
    assert lines[5] == "1.25 nats/token below the token frequencies"


def test_a_model_worse_than_the_frequencies_is_said_to_be(tmp_path):
    file = write(tmp_path / "metrics.jsonl", BASELINES, evaluation(10, 6.75))
    assert summary(file).endswith("0.25 nats/token ABOVE the token frequencies")


def test_a_run_without_evaluations_has_no_table(tmp_path):
    assert summary(write(tmp_path / "metrics.jsonl", {"step": 1, "loss": 3.0})) == ""
