"""Every kind of run gives a picture, without a display, and a failed one leaves nothing."""

import math
import os
import subprocess
import sys

import pytest

from jaxllada.apps import plot
from jaxllada.common.curves import Curves, read_curves
from jaxllada.common.errors import UserError
from jaxllada.common.plots import _figure, plot_losses
from jaxllada.common.tracking import MetricWriter

pytest.importorskip("matplotlib")


def made(folder, *, count=60, rates=True, bound=True, baselines=True, bad=()):
    writer = MetricWriter(folder / "metrics.jsonl")
    if baselines:
        writer.log({"event": "start", "uniform_bound": 8.3, "unigram_bound": 6.5}, 0)
    for step in range(1, count + 1):
        loss = math.nan if step in bad else 3 + 5 / step
        row = {"loss": loss, "learning_rate": 1e-3 / step, "tokens": step * 100}
        if rates:
            row["nll_by_rate"] = [None, loss, 2 * loss]
        writer.log(row, step)
        if bound and step % 20 == 0:
            writer.log({"eval_bound": loss, "eval_standard_error": 0.1}, step)
    if bad:
        writer.log({"event": "rollback"}, max(bad))
        writer.log({"event": "loss_spike"}, max(bad) + 1)
    writer.close()
    return folder


def texts(figure):
    """Every word of a figure."""
    return {t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text"))}


@pytest.mark.parametrize(
    "shape",
    [
        {}, {"count": 1}, {"count": 2}, {"rates": False}, {"bound": False}, {"baselines": False},
        {"bad": (5, 6)}, {"count": 3, "bad": (1, 2, 3), "bound": False},
    ],
    ids=str,
)  # fmt: skip
def test_every_kind_of_run_gives_a_picture(tmp_path, shape):
    out = tmp_path / "out" / "loss.png"
    plot_losses(made(tmp_path, **shape), out, title="mine")
    assert out.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in out.parent.iterdir()] == ["loss.png"]


def test_the_picture_shows_bound_baselines_rollback_and_rates(tmp_path):
    figure = _figure([read_curves(made(tmp_path, bad=(5,)), "mine")])
    bound = 3 + 5 / 60
    words = {f"{bound:.3f}", "uniform 8.30", "unigram 6.50", "rollback", "validation bound"}
    words |= {
        "loss spike",
        "not finite",
        "Learning rate",
        "Loss by mask rate t",
        "tokens",
        "mine: loss",
    }
    assert words <= texts(figure)


def test_an_early_spike_does_not_flatten_the_curve(tmp_path):
    folder = made(tmp_path, count=200, baselines=False)
    text = (folder / "metrics.jsonl").read_text().replace('"loss": 8.0', '"loss": 5000.0')
    (folder / "metrics.jsonl").write_text(text)
    curves = read_curves(folder)
    low, high = _figure([curves]).axes[0].get_ylim()
    assert curves.loss.values[0] == 5000
    assert 2 < low < 3.1
    assert high < 12


def test_several_runs_are_told_apart_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "x/a"):
        made(tmp_path / name)
    seen: list[Curves] = []
    monkeypatch.setattr("jaxllada.common.plots.plot_runs", lambda runs, out: seen.extend(runs))
    plot.run(plot.Config(runs=("a", "b", "x/a/metrics.jsonl")))
    assert [run.name for run in seen] == ["a", "b", "x/a"]
    assert {"a", "b", "x/a", "validation"} <= texts(_figure(seen))


@pytest.mark.parametrize(
    ("runs", "out", "expected"),
    [
        (("a",), "", "a/loss.png"), (("a/metrics.jsonl",), "", "a/loss.png"),
        (("a", "b"), "", "compare.png"), (("a", "b"), "c/d.svg", "c/d.svg"), (("a",), "e", "e.png"),
    ],
)  # fmt: skip
def test_the_verb_writes_where_it_says(tmp_path, monkeypatch, capsys, runs, out, expected):
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "a", count=3)
    made(tmp_path / "b", count=3)
    plot.run(plot.Config(runs=runs, out=out))
    assert (tmp_path / expected).stat().st_size > 1000
    assert capsys.readouterr().out == f"wrote {expected}\n"


def test_wrong_requests_are_told_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="no run given"):
        plot.Config()
    with pytest.raises(UserError, match=r"out=a.jpeg: expected a name that ends in"):
        plot.Config(runs=("a",), out="a.jpeg")
    made(tmp_path / "a")
    with pytest.raises(UserError, match=r"no such file: .*b"):
        plot.run(plot.Config(runs=(str(tmp_path / "a"), str(tmp_path / "b"))))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_no_display_is_needed(tmp_path):
    made(tmp_path, count=3)
    code = f"from jaxllada.common.plots import plot_losses; plot_losses({str(tmp_path)!r}, 'l.png')"
    bare = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLBACKEND")}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=bare, check=True)
    assert (tmp_path / "l.png").exists()
