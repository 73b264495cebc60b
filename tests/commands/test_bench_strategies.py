"""`bench sample --strategies` and `bench growth`, on a model small enough to be quick."""

import json
import sys

import pytest

from jaxllada.__main__ import main
from jaxllada.apps.bench_strategies import strategy_config
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.errors import UserError

TINY = ["--model_name_or_path", "tiny", "--rounds", "2"]
SAMPLE = ["--prompt_length", "8", "--gen_length", "16", "--steps", "4", "--block_length", "8"]
EXACT = SamplingConfig(steps=4, gen_length=16, block_length=8)

# Another program with a strategy of its own: wrong tokens, quickly.
WORKER = """
import json, sys
task = json.loads(sys.argv[-1])
known = ["exact", "threshold:0.5", "unheard-of"]
print(json.dumps({"name": "other", "strategies": known}), flush=True)
for line in sys.stdin:
    strategy = json.loads(line)["strategy"]
    tokens = [row + [0] * task["gen_length"] for row in task["prompt"]]
    seconds = 50.0 if strategy == "exact" else 5.0
    print(json.dumps({"seconds": seconds, "tokens": tokens, "nfe": 7}), flush=True)
"""


def test_strategies_are_words_of_the_keys_they_set():
    assert strategy_config("exact", EXACT) == EXACT
    both = strategy_config("dual+threshold:0.8", EXACT)
    assert (both.cache, both.selection) == ("dual", "threshold:0.8")
    assert (both.steps, both.gen_length) == (EXACT.steps, EXACT.gen_length)
    assert strategy_config("none+soft:0.2", EXACT).smoothing == "soft:0.2"
    for wrong in ("threshold:0.9+factor:1.0", "dual+prefix", "duel", "threshold:high"):
        with pytest.raises(UserError, match="strategies="):
            strategy_config(wrong, EXACT)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """One run with everything, told as JSON."""
    folder = tmp_path_factory.mktemp("worker")
    (folder / "worker.py").write_text(WORKER)
    arguments = [
        "--strategies",
        "threshold:0.5",
        "--beside",
        f"{sys.executable} {folder}/worker.py",
    ]
    capture = pytest.MonkeyPatch()
    lines = []
    capture.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
    try:
        assert main(["bench", "sample", *TINY, *SAMPLE, *arguments, "--json"]) == 0
    finally:
        capture.undo()
    return json.loads(lines[-1])


def test_every_strategy_and_program_is_a_row(report):
    rows = {(row["program"], row["strategy"]): row for row in report["rows"]}
    assert list(rows) == [
        ("jaxllada", "exact"), ("jaxllada", "threshold:0.5"),
        ("other", "exact"), ("other", "threshold:0.5"),
    ]  # fmt: skip
    assert rows["jaxllada", "exact"]["nfe"] == 4
    assert rows["jaxllada", "exact"]["equal_to_exact"] == 1.0
    assert rows["jaxllada", "exact"]["times_exact"] == 1.0
    assert rows["other", "exact"]["nfe"] == 7
    assert rows["other", "exact"]["equal_to_exact"] < 0.5


def test_ratios_are_to_the_same_strategy_and_to_the_exact_decode_of_others(report):
    ours = next(r for r in report["rows"] if r["strategy"] == "threshold:0.5")
    assert ours["times_same_other"] == pytest.approx(5 / ours["seconds_median"], rel=0.5)
    assert ours["times_other"] / ours["times_same_other"] == pytest.approx(10)
    assert ours["equal_to_same_other"] < 0.5


def test_the_table_has_a_line_per_row(capsys):
    assert main(["bench", "sample", *TINY, *SAMPLE, "--strategies", "exact"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("model tiny, device 1 x cpu, dtype float32, batch_size 1")
    assert lines[-1].startswith("| exact")
    assert len({len(line) for line in lines[2:]}) == 1


def test_growth_measures_both_sweeps_and_draws_them(capsys, tmp_path):
    picture = tmp_path / "growth.png"
    arguments = ["--lengths", "16", "32", "--batches", "1", "2", "--steps_per_block", "2"]
    arguments += ["--prompt_length", "8", "--block_length", "8", "--strategies", "exact"]
    assert main(["bench", "growth", *TINY, *arguments, "--output", str(picture), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    points = [(row["gen_length"], row["batch_size"], row["nfe"]) for row in report["rows"]]
    assert points == [(16, 1, 4), (32, 1, 8), (16, 2, 4)]
    assert set(report["exponents"]["exact"]) == {"length", "batch"}
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--strategies", "exact"], "strategies=exact: is only for bench sample"),
        (["sample", "--output", "x.png"], "output=x.png: is only for bench growth"),
        (["growth", "--output", "/nowhere/x.png"], "its folder does not exist"),
        (["growth", "--beside", "x"], "beside=x: growth measures our code alone"),
        (["growth", "--lengths", "0"], "lengths: expected whole numbers"),
        (["sample", "--beside", "a", "b"], "beside names 2 programs: that needs strategies"),
        (["sample", "--strategies", "duel"], "strategies=duel"),
    ],
)
def test_a_mistake_is_told_in_one_line(capsys, arguments, message):
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
