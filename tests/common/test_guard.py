"""The guard rolls back when it should, lowers the rate, moves the data on, and gives up."""

import pytest

from jaxllada.common.run.guard import Guard, TrainingDivergedError


def guard(**changes):
    return Guard(**{"max_skipped_steps": 3, "lr_factor": 0.25, "max_rollbacks": 2} | changes)


def test_only_a_run_of_skipped_steps_breaks_it():
    assert [guard().is_broken(skipped) for skipped in range(5)] == [False] * 3 + [True] * 2


def test_a_rollback_rewinds_the_step_and_not_the_data():
    watch = guard()
    watch.roll_back(step=120, restored=100)
    assert 100 + watch.data_offset == 120
    watch.roll_back(step=130, restored=100)
    assert 100 + watch.data_offset == 130 + 20
    assert watch.lr_scale == 0.25**2


def test_it_gives_up_after_its_last_rollback_and_says_what_to_do():
    watch = guard(max_rollbacks=1)
    watch.roll_back(step=10, restored=0)
    with pytest.raises(TrainingDivergedError, match=r"after 1 rollbacks.*0\.25.*learning_rate"):
        watch.roll_back(step=20, restored=0)
    assert watch.rollbacks == 1


def test_its_state_survives_a_checkpoint():
    watch = guard()
    watch.roll_back(step=7, restored=5)
    again = guard()
    again.load(watch.state())
    assert again == watch
