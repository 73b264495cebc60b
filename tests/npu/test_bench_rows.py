"""`bench rows` and `bench likelihood` in torch, on the CPU or the simulated NPU."""

import json

from npu_backend.__main__ import main

TINY = ["--model_name_or_path", "tiny", "--rounds", "1", "--json"]


def test_rows_that_leave_the_batch_change_no_answer(capsys):
    keys = ["--prompt_length", "8", "--gen_length", "16", "--steps_per_block", "2"]
    keys += ["--block_length", "4", "--batch_size", "4", "--strategies", "exact", "dual"]
    assert main(["bench", "rows", *keys, *TINY]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["program"] == "npu_backend"
    assert report["share_needed"] == 10 / 16
    told = [(row["strategy"], row["rows"], row["nfe"]) for row in report["rows"]]
    runs = ("no ends", "kept", "dropped")
    assert told == [(strategy, run, 8) for strategy in ("exact", "dual") for run in runs]
    assert all(row["equal_to_kept"] == 1 for row in report["rows"] if row["rows"] != "no ends")


def test_a_long_prompt_is_reused_and_a_short_one_read_whole(capsys):
    keys = ["--lengths", "4", "64", "--option_length", "8", "--mc_num", "48"]
    assert main(["bench", "likelihood", *keys, *TINY]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    read_whole = [(row["prompt_length"], row["reuse_error"] is None) for row in report["rows"]]
    assert read_whole == [(4, True)] * 3 + [(64, True), (64, False), (64, False)]
