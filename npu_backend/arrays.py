"""NumPy arrays and CPU tensors over the same memory, bfloat16 included."""

import warnings

import ml_dtypes
import numpy as np
import torch
from torch import Tensor


def torch_view(array: np.ndarray) -> Tensor:
    """A CPU tensor over the memory of an array; not to be written to where that is read-only."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch_view(array.view(np.int16)).view(torch.bfloat16)
    with warnings.catch_warnings():
        # Views of mapped files are read-only, and only read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def numpy_view(tensor: Tensor) -> np.ndarray:
    """The values of a CPU tensor as an array over the same memory."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
