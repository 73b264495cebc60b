"""One model in both frameworks, from the same folder, and their weights side by side."""

from pathlib import Path

import jax
import numpy as np
import torch

import jaxllada.convert
import npu_backend.convert
from jaxllada.common.weights.names import llada_table
from npu_backend.models.names import layers_of, parameter_name


def both(folder: Path, **options):
    """(JAX model, torch model) of a folder; options as in `load`."""
    return jaxllada.convert.load(folder, **options), npu_backend.convert.load(folder, **options)


def torch_leaf(tensors, config, entry):
    """Stacks what torch keeps layer by layer, in the orientation of the JAX module."""
    parts = [
        tensors[parameter_name(config, entry, layer)].detach().float().numpy()
        for layer in layers_of(config, entry)
    ]
    parts = [part.T if entry.transposed else part for part in parts]
    return np.stack(parts) if entry.per_layer else parts[0]


def jax_leaf(tree, entry):
    for name in entry.path:
        tree = getattr(tree, name)
    return np.asarray(tree[...], np.float32)


def assert_same_gradients(jax_gradient, torch_model, *, rtol):
    """Every gradient agrees, relative to its own norm."""
    tensors = {name: p.grad for name, p in torch_model.named_parameters()}
    entries = llada_table(torch_model.config)
    assert len(jax.tree.leaves(jax_gradient)) == len(entries)
    for entry in entries:
        a, b = jax_leaf(jax_gradient, entry), torch_leaf(tensors, torch_model.config, entry)
        error = np.linalg.norm(a - b) / np.linalg.norm(a)
        assert error <= rtol, f"{'.'.join(entry.path)}: {error:.1e}"


def tensor(array) -> torch.Tensor:
    """A copy as a CPU tensor; integers as int64."""
    copy = torch.from_numpy(np.array(array))
    return copy.long() if copy.dtype == torch.int32 else copy
