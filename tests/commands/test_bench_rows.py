"""`bench rows` and `bench likelihood`, on a model small enough to be quick."""

import json

import numpy as np
import pytest

from jaxllada.__main__ import main
from jaxllada.apps.bench_rows import Ends, spread_ends

TINY = ["--model_name_or_path", "tiny", "--rounds", "1"]
ROWS = ["--prompt_length", "8", "--gen_length", "8", "--steps_per_block", "2"]
ROWS += ["--block_length", "4", "--batch_size", "2"]
LIKELIHOOD = ["--lengths", "4", "64", "--option_length", "8", "--mc_num", "48"]


def test_ends_are_spread_over_the_blocks():
    assert spread_ends(8, 4).tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert spread_ends(3, 8).tolist() == [1, 3, 6]
    assert spread_ends(4, 2).tolist() == [1, 1, 2, 2]


def test_the_stand_in_for_a_stop_rule_ends_rows_where_it_is_told():
    rule = Ends(np.array([1, 3, 1, 2]), block_length=5)
    asked = [
        [rule([0] * 5 * block) for _ in range(rows)] for block, rows in enumerate((4, 2, 1), 1)
    ]
    assert asked == [[True, False, True, False], [False, True], [True]]


def test_rows_that_leave_the_batch_change_no_answer(capsys):
    assert main(["bench", "rows", *TINY, *ROWS, "--strategies", "exact", "dual", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["blocks_of_rows"] == [1, 2]
    assert report["share_needed"] == 3 / 4
    rows = {(row["strategy"], row["rows"]): row for row in report["rows"]}
    assert len(rows) == len(report["rows"]) == 6
    for strategy in ("exact", "dual"):
        for run in ("kept", "dropped"):
            row = rows[strategy, run]
            assert (row["nfe"], row["equal_to_kept"]) == (4, 1.0)
            assert row["first_seconds"] > 0
            assert row["seconds_median"] > 0
        # Ended answers are filled up with end tokens.
        assert rows[strategy, "no ends"]["equal_to_kept"] == 3 / 4


def test_a_long_prompt_is_reused_and_a_short_one_read_whole(capsys):
    assert main(["bench", "likelihood", *TINY, *LIKELIHOOD, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = {(row["prompt_length"], row["reuse"]): row for row in report["rows"]}
    assert len(rows) == 6
    for length in (4, 64):
        whole, *others = (rows[length, reuse] for reuse in ("none", "prompt", "corrected"))
        assert (whole["times_none"], whole["reuse_error"]) == (1.0, None)
        for other in others:
            assert (other["reuse_error"] is None) == (length == 4)
            assert (other["value"] == whole["value"]) == (length == 4)
            assert (other["nfe"] > whole["nfe"]) == (length == 64)


def test_the_tables_have_a_line_per_row(capsys):
    assert main(["bench", "rows", *TINY, *ROWS]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "rows end after blocks 1 2: 75% of all blocks are needed"
    assert [line.split(" | ")[1] for line in lines[-3:]] == ["no ends", "kept", "dropped"]
    assert main(["bench", "likelihood", *TINY, *LIKELIHOOD, "--lengths", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("model tiny, device")
    assert lines[-1].endswith("| read whole |")
    assert lines[-3].endswith("|  |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rows", "--beside", "x"], "beside=x: rows measures our code alone"),
        (["likelihood", "--beside", "x"], "beside=x: likelihood measures our code alone"),
        (["likelihood", "--strategies", "dual"], "is only for bench sample, growth and rows"),
        (["rows", "--batch_size", "1"], "batch_size=1 with 4 blocks: rows that end at different"),
        (["rows", "--gen_length", "32"], "batch_size=8 with 1 blocks"),
        (["likelihood", "--mc_num", "100"], "mc_num=100 cannot be drawn in batches"),
        (["likelihood", "--option_length", "0"], "option_length=0: expected 1 or more"),
    ],
)
def test_a_mistake_is_told_in_one_line(capsys, arguments, message):
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
