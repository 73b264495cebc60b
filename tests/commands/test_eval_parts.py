"""Parts of an evaluation with JAX, numbered by srun: the first one scores what all answered."""

import pytest

from jaxllada.__main__ import main
from tests.commands.test_eval import found, home, npu, run, words  # noqa: F401  (a fixture)


@pytest.mark.slow
def test_tasks_of_srun_find_what_the_other_package_finds(home, tmp_path, monkeypatch, capsys):  # noqa: F811
    given = words(home, "choose.jsonl", "writes.yaml", temperature=0.0, batch_size=2)
    output = tmp_path / "jax"
    monkeypatch.setenv("SLURM_NTASKS", "2")
    for index in (1, 0):
        monkeypatch.setenv("SLURM_PROCID", str(index))
        assert not (output / "results.json").exists()
        assert main([*given, "--output", str(output), "--part", "auto"]) == 0
    assert "part 1/2 is answered; part 0 scores when all parts are" in capsys.readouterr().err
    metrics, samples, cost = found(output)
    theirs = run(given, tmp_path / "npu", package=npu)
    assert samples["writes"] == theirs[1]["writes"]
    assert metrics["choose"] == theirs[0]["choose"]
    assert cost["requests"] == theirs[2]["requests"]
    assert {path.stem for path in (output / "answers").iterdir()} == {"part-0-of-2", "part-1-of-2"}
