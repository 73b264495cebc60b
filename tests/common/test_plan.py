"""Planning without a framework: formulas, the search for layouts, the verb of both packages."""

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxllada.common.config.load import load_config
from jaxllada.common.config.presets import PRESETS
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.counting import count_parameters
from jaxllada.common.errors import UserError
from jaxllada.common.plan import report
from jaxllada.common.plan.adapters import adapters_of
from jaxllada.common.plan.eager import eager_footprint
from jaxllada.common.plan.footprint import TERMS
from jaxllada.common.plan.line import memory_line
from jaxllada.common.plan.search import cut, largest_rows, layouts
from jaxllada.common.plan.setup import REMATS, Setup, extra_work, setup_of
from jaxllada.common.plan.verb import PlanConfig, changed_keys, make_plan
from jaxllada.common.plan.xla import xla_footprint
from jaxllada.common.sizes import show_bytes

ROOT = Path(__file__).parents[2]
GIB = 2**30
BIG = Setup(model=PRESETS["llada-8b"], rows=2, length=4096, fsdp=8, dtype="bfloat16", remat="full")
FORMULAS = {"xla": xla_footprint, "eager": eager_footprint}
PACKAGES = ["jaxllada", "npu_backend"]


def verb(package: str):
    return importlib.import_module(f"{package}.commands.plan")


@pytest.mark.parametrize("formula", FORMULAS)
def test_weights_and_moments_are_counted_to_the_byte(formula):
    """Parameters and two moments in float32, shared by the devices of `fsdp`."""
    setup = BIG.replace(fsdp=1)
    total = 4 * count_parameters(setup.model).total
    terms = FORMULAS[formula](setup).terms
    assert (terms["parameters"], terms["optimizer"]) == (total, 2 * total)
    split = FORMULAS[formula](BIG).terms
    # Norms are copied in JAX and split in torch: a thousandth.
    assert split["optimizer"] == pytest.approx(total / 4, rel=1e-3)


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize(
    ("change", "grows"),
    [
        ({"rows": 4}, True),
        ({"length": 8192}, True),
        ({"remat": "none"}, True),
        ({"dtype": "float32"}, True),
        ({"has_average": True}, True),
        ({"accumulation": 2}, True),
        ({"fsdp": 1}, True),
        ({"fsdp": 16}, False),
        ({"data": 2}, None),
    ],
)
def test_each_setting_moves_the_peak_the_way_it_should(formula, change, grows):
    before, after = (FORMULAS[formula](s).total for s in (BIG, BIG.replace(**change)))
    assert (after > before, after == before) == (bool(grows), grows is None)


@pytest.mark.parametrize("formula", FORMULAS)
def test_more_recomputation_never_takes_more_memory(formula):
    # dots keeps the products, attention all but the scores: which is more depends on the shapes.
    for other in ("none", "attention", "dots"):
        small = FORMULAS[formula](BIG).total
        assert small <= FORMULAS[formula](BIG.replace(remat=other)).total


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_terms_of_a_footprint_are_its_total(formula):
    found = FORMULAS[formula](BIG)
    assert tuple(found.terms) == TERMS
    assert found.total == sum(found.terms.values())
    assert all(size >= 0 for size in found.terms.values())


@pytest.mark.parametrize("formula", FORMULAS)
def test_adapters_take_the_state_of_all_weights_away(formula):
    """Frozen weights as they are stored, and three float32 copies of what is trained."""
    setup = BIG.replace(fsdp=1, adapter_rank=16, param_dtype="bfloat16")
    trained = adapters_of(setup).total
    terms = FORMULAS[formula](setup).terms
    assert terms["optimizer"] == 8 * trained
    assert terms["parameters"] == 2 * count_parameters(setup.model).total + 4 * trained
    whole = FORMULAS[formula](setup.replace(adapter_rank=0)).total
    assert FORMULAS[formula](setup).total < whole / 3
    bare, drops = (setup.replace(remat="none", adapter_drops=drops) for drops in (False, True))
    less, more = (FORMULAS[formula](each).terms["activations"] for each in (bare, drops))
    assert less < more


def test_one_line_tells_the_peak_and_what_takes_it():
    config = TrainConfig(
        lora=True, model_name_or_path="llada-8b", param_dtype="bfloat16", bf16=True
    )
    line = memory_line(config, PRESETS["llada-8b"], 1, xla_footprint)
    assert line.startswith("planned memory: ")
    total = xla_footprint(setup_of(config, PRESETS["llada-8b"], 1)).total
    assert f"{show_bytes(total)} at the peak, in the" in line
    assert "parameters 16.4 GB" in line
    assert "of each of 4 devices" in memory_line(config, PRESETS["llada-8b"], 4, xla_footprint)


def test_adapters_are_counted_from_their_shapes():
    """r (in + out) for each of the seven layers of a block, against the layers by hand."""
    setup = BIG.replace(adapter_rank=16, param_dtype="bfloat16")
    shapes = [(4096, 4096)] * 4 + [(4096, 12288)] * 2 + [(12288, 4096)]
    by_hand = 32 * 16 * sum(inner + outer for inner, outer in shapes)
    assert adapters_of(setup).total == by_hand
    terms = eager_footprint(setup).terms
    assert terms["optimizer"] == 8 * by_hand / 8
    only = adapters_of(setup.replace(adapter_targets="q_proj,v_proj"))
    assert only.total == 32 * 16 * 2 * 8192


def test_recomputing_everything_costs_a_third_of_the_blocks():
    setup = BIG.replace(model=dataclasses.replace(BIG.model, vocab_size=1, embedding_size=128000))
    count = count_parameters(setup.model)
    blocks = count.attention + count.mlp + 2 * 32 * 4096 * 4096
    head = 128000 * 4096 / 2
    assert extra_work(setup) == pytest.approx(blocks / (3 * (blocks + head)))
    assert extra_work(setup.replace(remat="none")) == 0


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_largest_micro_batch_is_the_last_that_fits(formula):
    budget = 60 * GIB
    predict = FORMULAS[formula]
    rows = largest_rows(BIG, predict, budget)
    assert (
        predict(BIG.replace(rows=rows)).total <= budget < predict(BIG.replace(rows=rows + 1)).total
    )
    assert largest_rows(BIG, predict, GIB) == 0


def search(devices: int, per_node: int = 8, **changes):
    return layouts(
        BIG.replace(**changes), eager_footprint, 60 * GIB,
        devices=devices, per_node=per_node, remats=REMATS, allows=lambda setup: True,
    )  # fmt: skip


def test_every_layout_fits_and_fills_the_devices():
    found = search(16)
    assert found
    assert {layout.setup.devices for layout in found} == {16}
    assert all(layout.footprint.total <= 60 * GIB for layout in found)
    assert [layout.cost for layout in found] == sorted(layout.cost for layout in found)
    # 12 devices over nodes of 8 would split one node: 3, 6 and 12 may not cross it.
    assert {layout.setup.fsdp for layout in search(12)} <= {1, 2, 3, 4, 6}


def test_a_cut_keeps_the_global_batch():
    (layout, *_) = search(8)
    for global_rows in (8, 32, 40, 256):
        rows, pieces = cut(BIG, layout, global_rows)
        shards = layout.setup.data * layout.setup.fsdp
        assert rows * pieces * shards == global_rows
        assert rows <= layout.largest_rows


def test_the_suggestion_runs_and_keeps_the_batch(tmp_path):
    config = PlanConfig(
        model_name_or_path="llada-8b", bf16=True, max_length=4096, devices=8,
        per_device_train_batch_size=4, gradient_accumulation_steps=3, mesh_fsdp=8,
    )  # fmt: skip
    plan = make_plan(config, eager_footprint)
    changed = dataclasses.replace(config, **changed_keys(plan))
    again = setup_of(changed, plan.model, 8)
    assert eager_footprint(again).total <= config.budget
    assert again.rows * again.accumulation * again.data * again.fsdp == 4 * 3 * 8
    assert make_plan(changed, eager_footprint).fits


def test_a_mesh_that_does_not_fill_the_devices_is_told_and_replaced():
    config = PlanConfig(model_name_or_path="llada-8b", mesh_fsdp=8, devices=4, memory=200)
    plan = make_plan(config, eager_footprint)
    assert plan.footprint is None
    assert "mesh_fsdp=8" in plan.mismatch
    assert plan.found
    assert not plan.fits


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"devices": 0}, "devices=0"),
        ({"devices": 12}, "whole machines"),
        ({"memory": -1}, "memory=-1"),
        ({"headroom": 64.0}, "below memory"),
        ({"remat": "half"}, "remat='half'"),
        ({"max_length": 8192}, "max_sequence_length"),
        ({"model_name_or_path": "llada-9b"}, "did you mean 'llada-8b'"),
        ({"mesh_tensor": 3, "devices": 3}, "mesh_tensor=3"),
    ],
)
def test_what_cannot_be_planned_is_refused(values, message):
    base = {"model_name_or_path": "llada-8b", "max_length": 4096}
    with pytest.raises(UserError, match=message):
        make_plan(PlanConfig(**(base | values)), eager_footprint)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_verb_prints_terms_layouts_and_a_line_that_starts_the_run(package, capsys, monkeypatch):
    module, path = verb(package), "configs/pretrain/llada-8b.yaml"
    monkeypatch.chdir(ROOT)
    argv = [path, "--devices", "8", "--memory", "64", "--seed", "7"]
    monkeypatch.setattr(sys, "argv", ["plan", *argv])
    assert module.run(load_config(module.Config, argv)) == 0
    printed = capsys.readouterr().out
    for word in ("parameters", "optimizer", "peak", "layouts that fit", "largest micro-batch"):
        assert word in printed
    (line,) = (li.split("   #")[0] for li in printed.splitlines() if f" {path} " in li)
    words = line.split()
    assert words[:1] == ["jaxllada"] or words[:1] == ["./launch/npu_train.sh"]
    start = words.index(path)
    own = [w for w in words[start:] if w not in ("--nproc", "8")]
    rerun = load_config(TrainConfig, own)
    assert rerun.seed == 7
    assert rerun.mesh_fsdp * max(1, rerun.mesh_data) == 8


@pytest.mark.parametrize("package", PACKAGES)
def test_json_has_the_same_figures(package, capsys):
    module = verb(package)
    values = {"model_name_or_path": "llada-1b", "devices": 2, "mesh_fsdp": 2, "max_length": 512}
    assert module.run(module.Config(json=True, **values)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["configured"]["peak"] == sum(found["configured"]["terms"].values())
    assert found["fits"] is (found["configured"]["peak"] <= found["budget"])
    assert found["suggested"]["rows"] <= found["layouts"][0]["largest_rows"]
    assert found["launch"]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_run_that_fits_nowhere_says_so(package, capsys):
    module = verb(package)
    config = module.Config(model_name_or_path="llada-8b", max_length=4096, memory=24)
    assert module.run(config) == 1
    assert "no layout fits" in capsys.readouterr().out


@pytest.mark.parametrize("package", PACKAGES)
def test_planning_imports_no_framework(package):
    code = f"""
import sys
from {package}.commands import plan
plan.run(plan.Config(model_name_or_path="llada-100m"))
assert not {{"jax", "torch", "torch_npu"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


def test_several_machines_are_launched_one_by_one():
    config = PlanConfig(
        model_name_or_path="llada-8b", bf16=True, max_length=4096, devices=16, mesh_fsdp=8
    )
    plan = make_plan(config, eager_footprint)
    for package, word in (("jaxllada", "--num_processes 2"), ("npu_backend", "--nnodes 2")):
        line = verb(package)._launch(plan, report.arguments_of(plan))
        assert word in line
