"""Runs whose loss jumps and stays finite, on either backend: `runs` is its `tiny_run`."""

import dataclasses

import numpy as np
import pytest

from jaxllada.common.config.presets import PRESETS
from jaxllada.common.run.run_folder import RunFolder

BAD = range(56, 64)
MASK = PRESETS["tiny"].mask_token_id


class Scrambled:
    """A source whose batches of some numbers hold tokens without any order."""

    def __init__(self, source, bad=BAD):
        self._source, self._bad, self.asked = source, bad, []

    def __getattr__(self, name):
        return getattr(self._source, name)

    def batch(self, step):
        self.asked.append(step)
        batch = self._source.batch(step)
        if step not in self._bad:
            return batch
        tokens = np.random.default_rng(step).integers(40, 100, batch.tokens.shape, np.int32)
        return batch._replace(tokens=tokens, noisy=np.where(batch.is_masked, MASK, tokens))


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    monkeypatch.setattr(RunFolder, "draw_losses", lambda folder: None)


def settings(runs, folder, **changes):
    values = {
        "max_steps": 66, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "save_steps": 29,
        "loss_spike": "rollback", "max_spiking_steps": 4, "rollback_lr_factor": 0.5,
        "max_rollbacks": 1, "time_sampling": "stratified",
    }  # fmt: skip
    return runs.make_config(folder, **(values | changes))


def run(runs, config, **changes):
    source = Scrambled(runs.make_task(config).source, **changes)
    return runs.run_training(config, source=source), source


def events(runs, folder):
    rows = [row for row in runs.read_log(folder) if "event" in row]
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]


def test_a_spike_rolls_back_before_it_began_and_passes_its_data(runs, tmp_path, capsys):
    outcome, source = run(runs, settings(runs, tmp_path))
    assert outcome.step == 66
    (event,) = events(runs, tmp_path)
    # Batches 56 to 59 are steps 57 to 60, seen two steps later; step 58 was saved, but in a spike.
    assert (event["event"], event["from_step"], event["step"]) == ("rollback", 62, 29)
    assert "4 steps in a row" in event["reason"]
    assert (event["lr_scale"], event["data_offset"]) == (0.5, 33)
    assert source.asked[-37:] == list(range(62, 99))
    assert list(runs.losses(tmp_path)) == list(range(1, 67))
    assert "back to step 29" in capsys.readouterr().err


def test_a_spike_that_no_rollback_is_left_for_is_told_once(runs, tmp_path):
    outcome, _ = run(runs, settings(runs, tmp_path / "warn", loss_spike="warn"))
    assert outcome.step == 66
    (event,) = events(runs, tmp_path / "warn")
    assert (event["event"], event["step"]) == ("loss_spike", 62)
    spent = settings(runs, tmp_path / "spent", max_steps=130, save_steps=0)
    outcome, _ = run(runs, spent, bad=[*range(56, 63), *range(120, 130)])
    assert outcome.step == 130
    kinds = [event["event"] for event in events(runs, tmp_path / "spent")]
    assert kinds == ["rollback", "loss_spike"]


def test_a_run_stopped_in_a_spike_goes_on_as_if_it_had_not_been(runs, tmp_path):
    run(runs, settings(runs, tmp_path / "whole"))
    config = settings(runs, tmp_path / "cut")
    source = Scrambled(runs.make_task(config).source)
    runs.run_training(config, source=runs.Interrupting(source, at=60))
    assert 57 <= max(runs.losses(tmp_path / "cut")) < 61
    run(runs, dataclasses.replace(config, resume="auto"))
    cut, whole = (events(runs, tmp_path / name) for name in ("cut", "whole"))
    assert cut == whole
    assert runs.losses(tmp_path / "cut") == runs.losses(tmp_path / "whole")


def test_a_run_that_ignores_spikes_takes_them_as_they_come(runs, tmp_path):
    changes = {"loss_spike": "ignore", "max_spiking_steps": 10}
    run(runs, settings(runs, tmp_path, **changes))
    assert events(runs, tmp_path) == []
    losses = runs.losses(tmp_path)
    assert min(losses[step] for step in range(57, 61)) > max(losses[step] for step in (54, 55, 56))
