"""Adds a LoRA adapter to its base and writes a complete model folder.

    python -m npu_backend merge --model_name_or_path BASE --adapter output/lora --output_dir merged
    python -m npu_backend merge --base_model_path BASE --lora_path output/lora --merge_path merged

The adapter is a PEFT folder or a run that trained one; without model_name_or_path its base is the
one it names. Sums are taken in float32 and rounded once, to the type the base is stored in. Then
logits of base and adapter are compared with those of the merged folder. Exit code 1: they differ by
more than that rounding explains. Bases in orbax files are merged by `jaxllada merge`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxllada.apps import merge

if TYPE_CHECKING:
    import numpy as np

    from jaxllada.common.weights.adapter import Adapter
    from jaxllada.common.weights.source import Source


@dataclass(frozen=True, kw_only=True)
class Config(merge.Config):
    device: Literal["auto", "npu", "cuda", "cpu"] = "auto"
    """Where logits are computed: auto takes the first of npu, cuda and cpu that is there."""


def run(config: Config) -> int:
    """Writes the folder and tells what merging changed; returns 1 where it is too much."""

    def logits(
        path: Path,
        adapter: "Adapter | None",
        dtype: str,
        ids: "np.ndarray",
        attention_mask: "np.ndarray",
    ) -> "np.ndarray":
        import torch

        from npu_backend.calls import inference
        from npu_backend.convert import load
        from npu_backend.device import find_device
        from npu_backend.models.lora import put_adapter

        device = find_device(config.device)
        model = load(path, dtype, device=device)
        model = model if adapter is None else put_adapter(model, adapter)
        tokens = torch.from_numpy(ids).long().to(device)
        visible = torch.from_numpy(attention_mask).to(device)
        with inference(model):
            return model(tokens, visible).float().cpu().numpy()

    return merge.run(config, _open_source, logits)


def _open_source(path: Path, adapter: str | None) -> "Source":
    from jaxllada.common.weights.opening import open_folder

    return open_folder(path, adapter=adapter)
