"""The mesh changes where numbers are computed, not which: two processes equal one.

Over gloo on CPUs, and over the real ProcessGroupHCCL on simulated NPUs.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch

from jaxllada.common.errors import UserError
from npu_backend.sharding import initialize_distributed, make_mesh
from tests.npu.processes import ROOT, torchrun
from tests.npu.tiny_run import losses, make_config, read_log, run_training

# At a constant rate, since that of the schedule depends on where a run was going to end.
WHOLE = {
    "max_steps": 8, "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4,
    "random_length_ratio": 0.5, "lr_scheduler_type": "constant", "ema_decay": 0.9,
}  # fmt: skip
HALF = WHOLE | {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4}
QUARTERS = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
SHARDED = {"mesh_data": 1, "mesh_fsdp": 2}
RUNS = {
    "data": HALF,
    "data, accumulated": HALF | QUARTERS,
    "fsdp": HALF | SHARDED | {"gradient_checkpointing": True},
    "fsdp, accumulated": HALF | SHARDED | QUARTERS,
    "moved": HALF | SHARDED | {"stop_at": 6},
    "resumed": HALF | SHARDED | {"stop_at": 6},
    "resumed+": HALF | {"mesh_data": 2, "resume": "auto"},
}  # fmt: skip


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path):
    """Also for a sharded run that one process, or two with whole weights, go on from."""
    run_training(make_config(tmp_path / "one", **WHOLE, per_device_eval_batch_size=8))
    torchrun(2, ROOT / "tests/npu/distributed_program.py", tmp_path, json.dumps(RUNS))
    assert max(losses(tmp_path / "moved")) < 8
    run_training(make_config(tmp_path / "moved", **WHOLE | {"resume": "auto", "save_best": False}))
    expected = losses(tmp_path / "one")
    bounds = [row["eval_bound"] for row in read_log(tmp_path / "one") if "eval_bound" in row]
    assert (len(expected), len(bounds)) == (8, 3)
    for name in {name.rstrip("+") for name in RUNS}:
        got = losses(tmp_path / name)
        measured = [row["eval_bound"] for row in read_log(tmp_path / name) if "eval_bound" in row]
        # Float32 sums in another order, carried through 8 updates.
        np.testing.assert_allclose(
            list(got.values()), list(expected.values()), rtol=1e-5, err_msg=name
        )
        np.testing.assert_allclose(measured, bounds, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_bfloat16_shards_compute_what_one_process_does(tmp_path):
    settings = WHOLE | {"bf16": True, "eval_strategy": "no", "max_steps": 4}
    halves = settings | {"per_device_train_batch_size": 4} | SHARDED
    run_training(make_config(tmp_path / "one", **settings))
    program = ROOT / "tests/npu/distributed_program.py"
    torchrun(2, program, tmp_path, json.dumps({"two": halves}))
    got, expected = (list(losses(tmp_path / name).values()) for name in ("two", "one"))
    # The forward pass of a row is the same to the bit; a step rounds the gradient of each half.
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(got, expected, rtol=2e-3)


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        ({"data": 2}, "mesh_data=2 x mesh_fsdp=1: does not fill the 1 devices"),
        ({"fsdp": 2}, "mesh_data=-1 x mesh_fsdp=2: does not fill the 1 devices"),
        ({"tensor": 2}, "mesh_tensor=2: this backend splits weights with mesh_fsdp only"),
    ],
)
def test_a_mesh_that_does_not_fill_the_processes_is_refused(axes, told):
    with pytest.raises(UserError, match=told):
        make_mesh(torch.device("cpu"), **axes)


@pytest.mark.parametrize("flags", [("", 2, 0), ("localhost:1234", 2, -1), ("localhost", 2, 0)])
def test_processes_need_an_address_and_a_number(flags):
    with pytest.raises(UserError, match="num_processes=2: start the run with torchrun"):
        initialize_distributed("cpu", *flags)


def test_one_process_needs_no_group():
    assert initialize_distributed("cpu") == torch.device("cpu")
    mesh = make_mesh(torch.device("cpu"))
    assert (mesh.size, mesh.is_main, mesh.is_sharded) == (1, True, False)
    assert dataclasses.asdict(mesh)["layout"] is None
