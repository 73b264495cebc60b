"""A run is a function of its settings, whether it is stopped, killed, resumed or rolled back."""

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxllada.common.errors import UserError
from jaxllada.common.run.guard import TrainingDivergedError
from jaxllada.common.run.run_folder import RunFolder
from jaxllada.common.run.samples import Samples
from jaxllada.restore import load_run_params
from tests.jax.tiny_run import (
    DROPPING,
    TINY,
    Interrupting,
    losses,
    make_config,
    make_rows,
    make_task,
    read_log,
    run_training,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def _compile_once(tmp_path_factory):
    """Lets the runs of this file share their compiled programs."""
    before = {
        "jax_compilation_cache_dir": jax.config.jax_compilation_cache_dir,
        "jax_persistent_cache_min_compile_time_secs": 1.0,
    }
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    yield
    for key, value in before.items():
        jax.config.update(key, value)
    compilation_cache.reset_cache()


@pytest.fixture
def _no_picture(monkeypatch):
    monkeypatch.setattr(RunFolder, "draw_losses", lambda self: None)


pytestmark = pytest.mark.usefixtures("_no_picture")
DRAW = RunFolder.draw_losses


class Poisoned:
    """A source whose batches of some numbers have an infinite loss."""

    def __init__(self, source, bad):
        self._source, self._bad, self.asked = source, bad, []

    def __getattr__(self, name):
        return getattr(self._source, name)

    def batch(self, step):
        self.asked.append(step)
        batch = self._source.batch(step)
        if step not in self._bad:
            return batch
        return batch._replace(mask_rate=np.zeros_like(batch.mask_rate))


def same_tree(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


CASES = {
    "plain": (TINY, {}),
    "everything": (
        DROPPING,
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "ema_decay": 0.9,
         "logging_steps": 3, "time_sampling": "stratified"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, case):
    model, changes = CASES[case]
    whole = make_config(tmp_path / "whole", **changes)
    expected = run_training(whole, model)

    cut = make_config(tmp_path / "cut", **changes)
    task = make_task(cut, model)
    stopped = run_training(cut, model, source=Interrupting(task.source, at=8))
    assert stopped.signal == signal.SIGTERM
    assert 0 < stopped.step < 12
    assert (tmp_path / "cut" / "checkpoints" / str(stopped.step) / "manifest.json").is_file()
    again = run_training(dataclasses.replace(cut, resume="auto"), model)
    assert again.step == 12
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    same_tree(again.params, expected.params)


def test_an_older_checkpoint_can_be_named(tmp_path):
    config = make_config(tmp_path)
    run_training(config)
    first = losses(tmp_path)
    again = dataclasses.replace(config, resume=str(tmp_path / "checkpoints" / "4"))
    run_training(again)
    assert losses(tmp_path) == first
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"4", "8", "12", "8.before-return-to-4", "12.before-return-to-4"}


def test_a_damaged_checkpoint_is_skipped_on_resume(tmp_path, capsys):
    config = make_config(tmp_path)
    run_training(config)
    first = losses(tmp_path)
    (tmp_path / "checkpoints" / "12" / "manifest.json").unlink()
    largest = max((tmp_path / "checkpoints" / "8").rglob("d/*"), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    outcome = run_training(dataclasses.replace(config, resume="auto"))
    told = capsys.readouterr().err
    assert "/12: incomplete" in told
    assert "/8: damaged" in told
    assert "continuing after step 4" in told
    assert outcome.step == 12
    assert losses(tmp_path) == first


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 7}, r"seed=7: the run in output_dir has 42"),
        ({"per_device_train_batch_size": 4}, r"global batch size=4: .* has 8"),
        ({"loss_norm": "batch"}, r"loss_norm='batch': .* has 'token'"),
    ],
)
def test_resuming_with_other_settings_is_refused(tmp_path, changes, told):
    config = make_config(tmp_path, max_steps=4)
    run_training(config)
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(UserError, match=told):
        run_training(dataclasses.replace(config, resume="auto", max_steps=6, **changes))
    assert (tmp_path / "config.yaml").read_text() == before


def test_resuming_with_another_model_is_refused(tmp_path):
    config = make_config(tmp_path, max_steps=4)
    run_training(config)
    other = dataclasses.replace(TINY, residual_dropout=0.1)
    with pytest.raises(UserError, match=r"model residual_dropout=0.1: .* has 0.0"):
        run_training(dataclasses.replace(config, resume="auto"), other)


def test_the_cut_and_the_length_of_a_run_may_change_on_resume(tmp_path):
    run_training(make_config(tmp_path / "whole", max_steps=8, lr_scheduler_type="constant"))
    config = make_config(tmp_path / "cut", max_steps=4, lr_scheduler_type="constant")
    run_training(config)
    run_training(
        dataclasses.replace(
            config, resume="auto", max_steps=8, per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
        )
    )  # fmt: skip
    whole, cut = losses(tmp_path / "whole"), losses(tmp_path / "cut")
    np.testing.assert_allclose(list(cut.values()), list(whole.values()), rtol=1e-5)


def test_a_second_run_does_not_overwrite_the_first_unasked(tmp_path):
    config = make_config(tmp_path, max_steps=4)
    run_training(config)
    with pytest.raises(UserError, match="holds a run already"):
        run_training(config)
    fresh = dataclasses.replace(config, overwrite_output_dir=True, max_steps=2)
    run_training(fresh)
    assert list(losses(tmp_path)) == [1, 2]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2"}


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    config = make_config(tmp_path, max_steps=4)
    expected = run_training(config)
    before = (tmp_path / "metrics.jsonl").read_text()
    again = run_training(dataclasses.replace(config, resume="auto"))
    assert again.step == 4
    same_tree(again.params, expected.params)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_auto_starts_anew_where_there_is_nothing(tmp_path):
    assert run_training(make_config(tmp_path, resume="auto", max_steps=2)).step == 2


def test_other_places_to_resume_from_are_refused(tmp_path):
    config = make_config(tmp_path, resume=str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="expected auto, never or a checkpoint folder"):
        run_training(config)
    assert not (tmp_path / "config.yaml").exists()


def test_a_run_that_breaks_rolls_back_lowers_the_rate_and_passes_the_bad_data(tmp_path, capsys):
    config = make_config(
        tmp_path, max_skipped_steps=2, rollback_lr_factor=0.5, lr_scheduler_type="constant",
        warmup_steps=0,
    )  # fmt: skip
    source = Poisoned(make_task(config).source, bad={6, 7, 8, 9})
    outcome = run_training(config, source=source)
    log = read_log(tmp_path)
    events = [row for row in log if row.get("event") == "rollback"]
    assert len(events) >= 1
    # Batches 6 and 7 break the run; it is seen STEPS_AHEAD steps later and returns to step 4.
    assert events[0]["step"] == 4
    assert events[0]["lr_scale"] == 0.5
    assert events[0]["data_offset"] == events[0]["from_step"] - 4
    assert outcome.step == 12
    rates = {row["step"]: row["learning_rate"] for row in log if "loss" in row}
    scale = events[-1]["lr_scale"]
    assert rates[4] == 3e-3
    assert rates[12] == 3e-3 * scale
    # Every step stands in the log once, and no loss that remains is missing.
    assert list(losses(tmp_path)) == list(range(1, 13))
    assert all(isinstance(loss, float) for loss in losses(tmp_path).values())
    last_bad = max(i for i, step in enumerate(source.asked) if step in (6, 7, 8, 9))
    assert min(source.asked[last_bad + 1 :]) > 9
    assert "back to step 4" in capsys.readouterr().err


def test_a_single_bad_step_is_skipped_and_counted(tmp_path):
    config = make_config(tmp_path, max_skipped_steps=2)
    source = Poisoned(make_task(config).source, bad={5})
    assert run_training(config, source=source).step == 12
    rows = {row["step"]: row for row in read_log(tmp_path) if "loss" in row}
    assert rows[6]["loss"] == "NaN"
    assert [rows[step]["skipped_steps"] for step in (5, 6, 12)] == [0, 1, 1]


def test_a_run_that_cannot_be_saved_stops_with_advice(tmp_path):
    config = make_config(tmp_path, max_skipped_steps=1, max_rollbacks=2)
    source = Poisoned(make_task(config).source, bad=set(range(100)))
    with pytest.raises(TrainingDivergedError, match="still not finite after 2 rollbacks"):
        run_training(config, source=source)
    assert [row["lr_scale"] for row in read_log(tmp_path) if "event" in row] == [0.25, 0.25**2]


def test_a_lower_rate_survives_a_crash_after_the_rollback(tmp_path):
    config = make_config(tmp_path, max_skipped_steps=1, save_steps=2, save_total_limit=1)
    source = Poisoned(make_task(config).source, bad={4})
    run_training(config, source=Interrupting(source, at=9))
    # The checkpoint rolled back to carries the new scale even if nothing was saved since.
    outcome = run_training(dataclasses.replace(config, resume="auto"))
    assert outcome.step == 12
    rates = [row["learning_rate"] for row in read_log(tmp_path) if row.get("step") == 12]
    lonely = run_training(make_config(tmp_path / "plain"))
    plain = [row["learning_rate"] for row in read_log(tmp_path / "plain") if row["step"] == 12]
    assert rates == [0.25 * plain[0]]
    assert lonely.step == 12


def test_a_run_learns_evaluates_and_leaves_a_complete_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(RunFolder, "draw_losses", DRAW)
    config = make_config(
        tmp_path, max_steps=60, eval_strategy="steps", eval_steps=0.5, learning_rate=1e-2,
        save_steps=0, ema_decay=0.8,
    )  # fmt: skip
    outcome = run_training(
        config, sample=lambda params: Samples("a sample\n"), baselines={"uniform_bound": 4.9}
    )
    assert outcome.first is not None
    assert outcome.last is not None
    assert outcome.last.bound < outcome.first.bound - 1
    bounds = {row["step"]: row["eval_bound"] for row in read_log(tmp_path) if "eval_bound" in row}
    assert list(bounds) == [0, 30, 60]
    assert bounds[60] == outcome.last.bound
    assert (tmp_path / "samples" / "step-60.txt").read_text() == "a sample\n"
    for name in ("config.yaml", "config.json", "metrics.jsonl", "loss.png"):
        assert (tmp_path / name).stat().st_size > 0
    monkeypatch.chdir(tmp_path.parent)
    params, model = load_run_params(tmp_path.name)
    assert model == TINY
    same_tree(params, outcome.params)  # the average, which was evaluated
    raw, _ = load_run_params(tmp_path, average=False)
    assert not np.array_equal(raw["wte"], params["wte"])


def test_a_profile_window_leaves_a_trace(tmp_path):
    run_training(make_config(tmp_path, max_steps=6, profile="2:4"))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


PROGRAM = """
import sys, time
from tests.jax.tiny_run import make_config, make_task, run_training
class Slow:
    def __init__(self, source): self._source = source
    def __getattr__(self, name): return getattr(self._source, name)
    def batch(self, step):
        time.sleep(0.05 if "slow" in sys.argv else 0)
        return self._source.batch(step)
config = make_config(sys.argv[1], max_steps=40, save_steps=5, resume="auto")
outcome = run_training(config, source=Slow(make_task(config).source))
sys.exit(128 + outcome.signal if outcome.signal else 0)
"""


def start(folder, *flags):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), *flags], cwd=ROOT, stderr=subprocess.PIPE
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_process_leaves_a_run_that_continues_exactly(tmp_path, number):
    expected = start(tmp_path / "whole")
    killed = start(tmp_path / "cut", "slow")
    deadline = time.monotonic() + 120
    while not (tmp_path / "cut" / "checkpoints" / "10" / "manifest.json").is_file():
        assert time.monotonic() < deadline
        assert killed.poll() is None, killed.stderr.read().decode()
        time.sleep(0.02)
    killed.send_signal(number)
    told = killed.communicate()[1].decode()
    assert killed.returncode == (143 if number == signal.SIGTERM else -9), told
    if number == signal.SIGTERM:
        assert "--resume auto" in told
    assert max(losses(tmp_path / "cut")) < 40
    continued = start(tmp_path / "cut")
    assert continued.wait() == expected.wait() == 0
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_epochs_decide_the_length_of_a_run(tmp_path):
    config = make_config(tmp_path, max_steps=-1, num_train_epochs=2.0, save_steps=0)
    assert run_training(config, rows=make_rows(20)).step == 5
