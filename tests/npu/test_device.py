"""Which device is found, and what is said where it is not there."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from jaxllada.common.errors import UserError
from npu_backend.device import find_device, peak_memory, synchronize
from tests.npu.devices import DEVICE, IS_NPU


def test_the_default_is_the_best_device_there_is():
    best = "npu" if IS_NPU else "cuda" if torch.cuda.is_available() else "cpu"
    assert find_device("auto").type == best
    assert find_device().type == best
    assert find_device("cpu") == torch.device("cpu")


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="device='tpu' is unknown: use one of auto, npu, cuda, cpu"):
        find_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_told():
    with pytest.raises(UserError, match="device=cuda: torch sees no CUDA GPU"):
        find_device("cuda")


@pytest.mark.skipif(
    importlib.util.find_spec("torch_npu") is not None, reason="torch_npu is installed"
)
def test_a_missing_torch_npu_is_told_with_the_way_out():
    with pytest.raises(UserError, match="torch_npu is not installed .*--device cpu works anywhere"):
        find_device("npu")


@pytest.mark.skipif(importlib.util.find_spec("torch_npu") is None, reason="needs torch_npu")
def test_a_torch_npu_without_cann_is_told_and_auto_goes_on_without():
    """In a fresh process, without the simulator's libraries."""
    program = (
        "import sys, npu_backend.device as d\n"
        "assert d.find_device('auto').type == 'cpu'\n"
        "assert 'torch_npu' not in sys.modules\n"
        "d.find_device('npu')\n"
    )
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "NPU_SIM": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "UserError: device=npu: torch_npu does not load (lib" in done.stderr


@pytest.mark.skipif(not IS_NPU, reason="needs a (simulated) NPU: set NPU_SIM=1")
def test_a_process_of_torchrun_takes_the_device_of_its_rank():
    program = (
        "import tests.ascend_sim.ascend_sim, torch\n"
        "from npu_backend.device import find_device\n"
        "assert find_device('npu') == torch.device('npu', 1) == find_device('auto')\n"
        "assert torch.npu.current_device() == 1\n"
        "x = torch.ones(2, device=find_device(), requires_grad=True)\n"
        "x.sum().backward()\n"
        "assert x.grad.device.index == 1\n"
    )
    environment = {**os.environ, "LOCAL_RANK": "1"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_memory_and_waiting_work_on_every_device():
    kept = torch.ones(1000, device=DEVICE)
    synchronize(DEVICE)
    assert peak_memory(DEVICE) >= (kept.nbytes if DEVICE.type != "cpu" else 0)
