"""The device the tests of this folder run on, and the kernels it has."""

import os

import numpy as np
import torch

from npu_backend.ops import FUSED, PLAIN

IS_NPU = os.environ.get("NPU_SIM") == "1"
DEVICE = torch.device("npu", 0) if IS_NPU else torch.device("cpu")
KERNELS = {"plain": PLAIN, "fused": FUSED} if IS_NPU else {"plain": PLAIN}


def put(array) -> torch.Tensor:
    """An array as a tensor of the device; integers as int64."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    is_small = tensor.dtype in (torch.int32, torch.int16)
    return (tensor.long() if is_small else tensor).to(DEVICE)


def get(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as a float32 array of the host."""
    return tensor.detach().float().cpu().numpy()
