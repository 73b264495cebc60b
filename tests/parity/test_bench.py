"""Both packages take turns in one run of `bench`: the same weights, batch, tokens and losses."""

import json
import subprocess
import sys

import pytest

import jaxllada.__main__
import npu_backend.__main__

SMALL = [
    "--model_name_or_path", "tiny", "--rounds", "2", "--prompt_length", "8", "--gen_length", "16",
    "--steps", "8", "--block_length", "8", "--batch_size", "2", "--length", "32", "--json",
]  # fmt: skip
TORCH = f"{sys.executable} -m npu_backend.commands.beside --device cpu"
JAX = f"{sys.executable} -m jaxllada.commands.beside"


def bench(capsys, package, *arguments):
    assert package.main(["bench", *arguments, *SMALL]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_torch_beside_jax_samples_the_same_tokens(capsys):
    way = "prefix+threshold:0.5"
    report = bench(capsys, jaxllada.__main__, "sample", "--strategies", way, "--beside", TORCH)
    rows = {(row["program"], row["strategy"]): row for row in report["rows"]}
    for name in ("exact", way):
        ours, other = rows["jaxllada", name], rows["npu_backend", name]
        assert ours["equal_to_same_npu_backend"] == 1.0
        assert ours["nfe"] == other["nfe"]
        assert other["peak_bytes"] > 2**26
        assert ours["peak_bytes"] > 2**26
    assert rows["jaxllada", way]["equal_to_exact"] < 1.0


def test_jax_beside_torch_makes_the_same_steps(capsys):
    """After the round that warms up and two more, so weights, moments and batch are equal."""
    report = bench(capsys, npu_backend.__main__, "train", "--device", "cpu", "--beside", JAX)
    assert report["loss"] == pytest.approx(report["beside_loss"], rel=1e-5)
    assert report["beside_seconds_best"] > 0


@pytest.mark.parametrize("arguments", [[], ["--device", "cpu"], ["[]"]])
def test_a_program_without_a_task_says_who_starts_it(arguments):
    program = [sys.executable, "-m", "npu_backend.commands.beside", *arguments]
    done = subprocess.run(program, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: no task given: this is started by `bench --beside`" in done.stderr
