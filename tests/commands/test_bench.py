"""The verb `bench`, on a model small enough to be quick."""

import json
import sys

import pytest

from jaxllada.__main__ import main

TINY = ["--model_name_or_path", "tiny", "--rounds", "1", "--json", "true"]
SAMPLE = ["--prompt_length", "8", "--gen_length", "16", "--steps", "4", "--block_length", "8"]
TRAIN = ["--batch_size", "2", "--length", "32"]

# The released weights of the folder, through this package: what another program would do.
WORKER = """
import json, sys, time
import numpy as np
import jaxllada
task = json.loads(sys.argv[-1])
model = jaxllada.load(task["folder"])
config = jaxllada.SamplingConfig(
    **{key: task[key] for key in ("steps", "gen_length", "block_length")}
)
print("{}", flush=True)
for line in sys.stdin:
    tokens = np.asarray(jaxllada.sample(model, np.array(task["prompt"]), config))
    print(json.dumps({"seconds": 1.0, "tokens": tokens.tolist(), "peak_bytes": 1}), flush=True)
"""


def bench(capsys, *arguments):
    assert main(["bench", *arguments, *TINY]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("task", "keys"), [("train", TRAIN), ("sample", SAMPLE)])
def test_a_report_holds_what_was_measured(capsys, task, keys):
    report = bench(capsys, task, *keys)
    assert report["task"] == task
    assert report["parameters"] == 26784
    speed = report["tokens_per_second"] * report["seconds_median"]
    assert speed == pytest.approx(64 if task == "train" else 16)
    share = report["model_tflops_per_second"] / report["gemm_tflops_per_second"]
    assert report["fraction_of_gemm"] == pytest.approx(share)
    assert report["peak_resident_bytes"] > 2**26
    assert report["seconds_best"] > 0


def test_training_takes_a_batch_with_about_half_its_tokens_masked(capsys):
    assert 0.4 < bench(capsys, "train", *TRAIN)["masked_fraction"] < 0.6


def test_another_program_takes_turns_and_its_tokens_are_compared(capsys, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    command = f"{sys.executable} {tmp_path / 'worker.py'}"
    report = bench(capsys, "sample", *SAMPLE, "--beside", command)
    assert report["beside_seconds_median"] == 1.0
    assert report["times_faster"] == pytest.approx(1 / report["seconds_median"])
    assert report["fraction_of_equal_tokens"] == 1.0
    assert report["beside_peak_resident_bytes"] == 1


def test_the_table_names_every_number(capsys):
    assert main(["bench", "sample", *SAMPLE, *TINY[:4]]) == 0
    table = capsys.readouterr().out
    for key in ("compile_seconds", "tokens_per_second", "fraction_of_gemm", "peak_resident_bytes"):
        assert key in table


def test_converting_takes_turns_with_cp_and_loses_no_bit(capsys, tmp_path):
    arguments = ["--size", "60KB", "--folder", str(tmp_path), "--rounds", "2"]
    assert main(["bench", "convert", *TINY[:2], *arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["model"], report["layers"], report["bytes"]) == ("tiny", 2, 53568)
    assert report["round_trip_is_bit_exact"] is True
    assert report["largest_tensor_bytes"] == 8192
    assert report["peak_allowed_bytes"] == 2 * 8192 + 2**29
    for way in ("hf_to_flax", "flax_to_hf"):
        rate = report[f"{way}_gigabytes_per_second"] * report[f"{way}_seconds_median"]
        assert rate == pytest.approx(53568e-9)
        assert 0 <= report[f"{way}_peak_bytes"] < report["peak_allowed_bytes"]
        assert report[f"{way}_cp_seconds_median"] > 0
        assert report[f"{way}_times_the_speed_of_cp"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "--size", "9TB"], "size=9 TB: llada-8b has 16 GB"),
        (["convert", "--size", "much"], "size=much: expected a size such as 5GB"),
        (["convert", "--folder", "/nowhere"], "folder=/nowhere: expected a folder that exists"),
        (["convert", "--beside", "x"], "beside=x: convert takes turns with cp"),
        (["train", "--size", "4GB"], "size=4GB: is only for bench convert"),
        (["sampel"], "did you mean 'sample'?"),
        (["sample", "--rounds", "0"], "rounds=0: expected 1 or more"),
        (["sample", "--model_name_or_path", "llada9b"], "preset 'llada9b' is unknown"),
        (["sample", "--steps", "100", "--block_length", "48"], "gen_length=128"),
        (["sample", "--beside", "no-such-program", *SAMPLE, *TINY[:2]], "cannot be started"),
    ],
)
def test_a_mistake_is_told_in_one_line(capsys, arguments, message):
    assert main(["bench", *arguments]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert message in told[-1]
