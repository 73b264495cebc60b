"""metrics.jsonl is always whole and valid; trackers get the numbers and can fail alone."""

import importlib.util
import json
import math
import re
import sys

import ml_dtypes
import numpy as np
import pytest

from jaxllada.common.config.load import load_file
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.errors import UserError
from jaxllada.common.trackers import make_tracker
from jaxllada.common.tracking import NAMES, MetricWriter, Tracking, parse_report_to, read_metrics


class Recorder:
    """Remembers calls; raises at the method named `fails`, from call number `after` on."""

    def __init__(self, fails: str = "", after: int = 0, error: BaseException | None = None):
        self.calls = []
        self._fails, self._after = fails, after
        self._error = error or ConnectionError("no\nroute")

    def _call(self, method, *arguments):
        self.calls.append((method, *arguments))
        if method == self._fails and sum(c[0] == method for c in self.calls) > self._after:
            raise self._error

    def start(self, config, run_id):
        self._call("start", config, run_id)

    def log(self, metrics, step):
        self._call("log", metrics, step)

    def text(self, name, text, step):
        self._call("text", name, text, step)

    def finish(self, status):
        self._call("finish", status)


def strict_lines(path):
    """Parses as a strict reader would: no NaN, one object per line."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_every_value_becomes_strict_json_and_reads_back(tmp_path):
    values = {
        "loss": np.float32(1.5), "half": ml_dtypes.bfloat16(0.5), "count": np.int64(3),
        "nan": math.nan, "up": np.float32(np.inf), "down": -math.inf, "flag": np.bool_(True),
        "bins": np.array([1.0, np.nan]), "event": "rollback", "none": None, "nested": {"a": (1, 2)},
    }  # fmt: skip
    writer = MetricWriter(tmp_path / "run" / "metrics.jsonl")
    writer.log(values, np.int64(7))
    (raw,) = strict_lines(writer.path)
    assert (raw["nan"], raw["up"], raw["down"]) == ("NaN", "Infinity", "-Infinity")
    (row,) = read_metrics(writer.path)
    assert row["step"] == 7
    assert math.isnan(row["nan"])
    assert math.isnan(row["bins"][1])
    assert (row["up"], row["down"]) == (math.inf, -math.inf)
    assert (row["loss"], row["half"], row["count"], row["flag"]) == (1.5, 0.5, 3, True)
    assert (row["event"], row["none"], row["nested"]) == ("rollback", None, {"a": [1, 2]})


def test_a_line_is_on_disk_when_log_returns(tmp_path):
    writer = MetricWriter(tmp_path / "m.jsonl")
    for step in range(3):
        writer.log({"x": step}, step)
        assert [r["x"] for r in strict_lines(writer.path)] == list(range(step + 1))


@pytest.mark.parametrize("resume_step", [0, 4, 5, 9, 100])
def test_a_resumed_run_has_each_step_once(tmp_path, resume_step):
    path = tmp_path / "m.jsonl"
    writer = MetricWriter(path)
    for step in range(1, 11):
        writer.log({"run": 1}, step)
    writer.close()
    with open(path, "a") as file:
        file.write('{"step": 11, "ru')  # the process died here
    writer = MetricWriter(path, resume_step)
    for step in range(resume_step + 1, resume_step + 4):
        writer.log({"run": 2}, step)
    rows = strict_lines(path)
    kept = min(resume_step, 10)
    assert [r["step"] for r in rows if r["run"] == 1] == list(range(1, kept + 1))
    assert len({r["step"] for r in rows}) == len(rows) == kept + 3
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]


def test_a_new_run_begins_an_empty_file(tmp_path):
    for value in (1, 2):
        writer = MetricWriter(tmp_path / "m.jsonl")
        writer.log({"x": value}, 1)
        writer.close()
    assert [r["x"] for r in read_metrics(writer.path)] == [2]


def test_a_rollback_forgets_later_metrics_but_not_what_happened(tmp_path):
    run = Tracking(tmp_path)
    for step in range(1, 6):
        run.log({"loss": step}, step)
    run.log({"event": "rollback"}, 5)
    run.rewind(3)
    run.log({"loss": 40}, 4)
    run.finish()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [r.get("loss", r.get("event")) for r in rows] == [1, 2, 3, "rollback", 40]


def test_trackers_get_numbers_only_and_lists_by_index(tmp_path):
    recorder = Recorder()
    run = Tracking(tmp_path, trackers={"r": recorder})
    run.start({"lr": 1e-3, "bad": math.nan}, "id")
    run.log({"loss": np.float32(2.0), "bins": [1, 2.5], "note": "text"}, 1)
    run.log({"event": "only text"}, 2)
    run.text("sample", "hello", 3)
    run.finish("failed")
    assert recorder.calls == [
        ("start", {"lr": 1e-3, "bad": "NaN"}, recorder.calls[0][2]),
        ("log", {"loss": 2.0, "bins/0": 1.0, "bins/1": 2.5}, 1),
        ("text", "sample", "hello", 3),
        ("finish", "failed"),
    ]


def test_a_resumed_run_is_the_same_run_and_a_new_one_is_another(tmp_path):
    def identity(resume_step):
        recorder = Recorder()
        run = Tracking(tmp_path, trackers={"r": recorder}, resume_step=resume_step)
        run.start({}, "8B / try: 1")
        run.finish()
        return recorder.calls[0][2]

    first, resumed, second = identity(None), identity(5), identity(None)
    assert re.fullmatch(r"8B-try-1-[0-9a-f]{8}", first)
    assert resumed == first != second


@pytest.mark.parametrize("error", [None, SystemExit(1)], ids=["exception", "exit"])
@pytest.mark.parametrize(
    ("method", "after"), [("start", 0), ("log", 0), ("log", 2), ("text", 0), ("finish", 0)]
)
def test_a_failing_tracker_is_dropped_with_one_line(tmp_path, capsys, method, after, error):
    bad, good = Recorder(method, after, error), Recorder()
    run = Tracking(tmp_path, trackers={"bad": bad, "good": good})
    run.start({}, "id")
    for step in range(1, 6):
        run.log({"loss": step}, step)
        run.text("sample", "t", step)
    run.finish()
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: tracker bad dropped: ")
    assert sum(c[0] == method for c in bad.calls) == after + 1
    assert len(good.calls) == 12
    assert [r["loss"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_an_interrupt_is_not_swallowed(tmp_path):
    run = Tracking(tmp_path, trackers={"r": Recorder("log", 0, KeyboardInterrupt())})
    with pytest.raises(KeyboardInterrupt):
        run.log({"x": 1}, 1)


def test_other_processes_write_nothing(tmp_path):
    run = Tracking(tmp_path / "run", "tensorboard,wandb", is_main=False)
    run.start({}, "id")
    run.log({"loss": 1.0}, 1)
    run.text("s", "t", 1)
    run.rewind(0)
    run.finish()
    assert run.active == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (None, ()), ("", ()), ("none", ()), ([], ()), (["none"], ()),
        ("wandb", ("wandb",)), ("WandB, mlflow", ("wandb", "mlflow")),
        (["mlflow", "mlflow"], ("mlflow",)), (("wandb",), ("wandb",)), ("all", NAMES),
    ],
)  # fmt: skip
def test_report_to_takes_a_name_names_or_a_list(given, names):
    assert parse_report_to(given) == names


@pytest.mark.parametrize("given", ["wandbb", ["mlflow", "wandbb"]])
def test_an_unknown_tracker_is_refused_before_anything_is_written(tmp_path, given):
    with pytest.raises(UserError, match=r"report_to=wandbb: .*did you mean 'wandb'"):
        Tracking(tmp_path / "run", given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_costs_one_line_with_the_command(tmp_path, capsys, monkeypatch, name):
    for module in list(sys.modules):
        if module.split(".")[0] == name:
            monkeypatch.delitem(sys.modules, module)

    class Absent:
        def find_spec(self, module, path=None, target=None):
            if module.split(".")[0] == name:
                raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    run = Tracking(tmp_path, name)
    run.start({}, "id")
    run.log({"x": 1.0}, 1)
    run.finish()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"tracker {name} dropped" in line
    assert f"pip install {name}" in line


def test_reading_a_run_without_metrics_is_told(tmp_path):
    with pytest.raises(UserError, match=r"no such file: .*metrics.jsonl"):
        read_metrics(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("name", NAMES)
def test_a_real_tracker_takes_a_run_and_its_continuation(tmp_path, capsys, monkeypatch, name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    for resume_step in (None, 5):
        run = Tracking(tmp_path / "run", name, run_name="try", resume_step=resume_step)
        run.start({"learning_rate": 1e-3, "prompts": ["a"], "none": None}, "run1")
        for step in range(1, 6):
            run.log({"loss": 1.0 / step, "bad": math.nan}, step + (resume_step or 0))
        run.text("sample", "a < b & c\n中", 5)
        assert run.active == (name,)
        run.finish("finished" if resume_step else "interrupted")
    assert "warning" not in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} <= {"run"}


def test_tensorboard_reads_back_what_was_logged(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resume_step in (None, 2):
        tracker = make_tracker("tensorboard", tmp_path, "try", resume_step)
        tracker.start({"seed": 1}, "id")
        for step in range(1, 5):
            tracker.log({"loss": step + (resume_step or 0)}, step + (resume_step or 0))
        tracker.finish("finished")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(i, i) for i in range(1, 7)]
    assert "config" in events.Tags()["tensors"]


def test_settings_take_trackers_as_text_or_list_and_refuse_unknown_ones(tmp_path):
    file = tmp_path / "c.yaml"
    for text in ("report_to: wandb,mlflow", "report_to: [wandb, mlflow]"):
        file.write_text(text)
        assert load_file(TrainConfig, file).trackers == ("wandb", "mlflow")
    with pytest.raises(UserError, match=r"report_to=wandbb: .*did you mean 'wandb'"):
        TrainConfig(report_to="wandbb")
