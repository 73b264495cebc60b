"""Between saved weights and `MaskPredictor`: the same bits, and no remote code."""

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from jaxllada.common.config.compute import ComputeConfig, Dtype
from jaxllada.common.errors import UserError
from jaxllada.common.weights.hub import local_folder
from jaxllada.common.weights.index import write_json
from jaxllada.common.weights.layouts import StoredTensor, find_layout, own_layout
from jaxllada.common.weights.names import Entry
from jaxllada.common.weights.opening import open_folder
from jaxllada.common.weights.pieces import cast
from jaxllada.common.weights.shards import Tensor as StoredOut
from jaxllada.common.weights.shards import plan_shards, write_shards
from jaxllada.common.weights.source import Source
from npu_backend.arrays import numpy_view, torch_view
from npu_backend.models.family import abstract_model
from npu_backend.models.lora import LoraLinear
from npu_backend.models.mask_predictor import MaskPredictor
from npu_backend.models.names import parameter_name, placements


def load(
    path_or_id: str | os.PathLike[str],
    dtype: str | None = None,
    *,
    step: int | None = None,
    compute: ComputeConfig | None = None,
    device: torch.device | str = "cpu",
    adapter: str | os.PathLike[str] | None = None,
    mask_token_id: int | None = None,
) -> MaskPredictor:
    """Reads a model from a model folder, a training run of this backend, or the Hub.

    Args:
        path_or_id: a folder with `config.json` and safetensors weights of either layout, a run's
            `output_dir`, or an id such as `owner/name`; an adapter, or a run that trains one, is
            added to the base it names.
        dtype: type of weights and activations; the stored type of the embedding by default.
        step: checkpoint of a training run; the newest sound one by default.
        compute: full compute policy; `dtype` overrides its two types.
        device: where the weights go; beside them the host holds one tensor at a time.
        adapter: folder, run or id of a LoRA adapter to add, computed in float32 and rounded once.
        mask_token_id: id of the mask token, for folders whose files do not tell it.

    Raises:
        UserError: missing, unexpected or misshaped tensors (all named together), damaged files.
    """
    path = local_folder(path_or_id)
    source = open_folder(path, step, mask_token_id=mask_token_id, adapter=adapter)
    config = source.config
    kind = dtype or (compute.param_dtype if compute else source.dtype(source.entries[0]).name)
    if kind not in get_args(Dtype):
        raise UserError(f"dtype={kind!r} is unknown: use one of {', '.join(get_args(Dtype))}")
    if compute is None or dtype is not None:
        types: dict[str, Any] = {"param_dtype": kind, "dtype": kind}
        compute = dataclasses.replace(compute or ComputeConfig(), **types)
    model = abstract_model(config, compute).to_empty(device=device)
    fill(model, source)
    source.close()
    return model


@torch.no_grad()
def fill(model: MaskPredictor, source: Source) -> MaskPredictor:
    """Puts the weights of a source into a model whose weights have memory, and returns it."""
    kind = np.dtype(model.compute.param_dtype)
    for name, entry, layer in placements(source.config):
        model.get_parameter(name).copy_(stored_tensor(source, entry, layer, dtype=kind))
    return model


def stored_tensor(
    source: Source,
    entry: Entry,
    layer: int = 0,
    *,
    rows: slice | None = None,
    dtype: np.dtype | None = None,
) -> Tensor:
    """Reads one weight on the CPU, as modules keep it (dense layers [out, in]).

    `rows` are those of the result. A view of the mapped file where nothing has to be changed.
    """
    array = source.read(entry, layer)
    array = array.T if entry.transposed else array
    array = array if rows is None else array[rows]
    return torch_view(
        array if dtype is None else cast(array, dtype, parameter_name(source.config, entry, layer))
    )


def save(
    model: MaskPredictor,
    path: str | os.PathLike[str],
    *,
    layout: str | None = None,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes `config.json` and the weights: `llada` has the released names, `llama` Llama's.

    The default is `llada`, and `qwen2` for the autoregressive twin.

    The folder appears complete or not at all; files that are already there are kept.

    Raises:
        UserError: the layout cannot express the model, naming the fields; the model has adapters.
    """
    if any(isinstance(module, LoraLinear) for module in model.modules()):
        raise UserError(f"{path}: the model has adapters that its weights lack; merge them first")
    chosen = own_layout(model.config) if layout is None else find_layout(layout)
    config_json = chosen.write_config(model.config)
    tensors = [_tensor(model, stored) for stored in chosen.tensors(model.config)]
    folder = Path(path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        write_shards(Path(temporary), plan_shards(tensors, shard_bytes))
        write_json(Path(temporary) / "config.json", config_json)
        folder.mkdir(exist_ok=True)
        for old in [*folder.glob("model*.safetensors"), *folder.glob("model*.index.json")]:
            old.unlink()
        # config.json last: without it no loader accepts the folder.
        for file in sorted(Path(temporary).iterdir(), key=lambda f: f.name == "config.json"):
            os.replace(file, folder / file.name)


def _tensor(model: MaskPredictor, stored: StoredTensor) -> StoredOut:
    names = [parameter_name(model.config, entry, layer) for entry, layer in stored.parts]
    kind = np.dtype(model.compute.param_dtype)

    def read() -> Iterator[np.ndarray]:
        for name in names:
            yield numpy_view(model.get_parameter(name).detach().cpu().contiguous())

    return StoredOut(stored.name, kind, stored.shape, read)
