"""Compares two model folders or torch runs, tensor by tensor.

    python -m npu_backend verify GSAI-ML/LLaDA-8B-Base output/run
    python -m npu_backend verify output/run hf/my-model --a_step 2000 --logits --device cpu

Exit code 0: the same bits in every tensor (and, with --logits, in every logit); 1: a difference.
Checkpoints of JAX are compared by `jaxllada verify`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jaxllada.apps import verify
from jaxllada.apps.verify import Model

if TYPE_CHECKING:
    import numpy as np

    from jaxllada.common.weights.source import Source


@dataclass(frozen=True, kw_only=True)
class Config(verify.Config):
    device: Literal["auto", "npu", "cuda", "cpu"] = "auto"
    """Where logits are computed: auto takes the first of npu, cuda and cpu that is there."""


def run(config: Config) -> int:
    """Prints what differs; returns 1 if anything does."""

    def logits(
        model: Model, dtype: str, ids: "np.ndarray", attention_mask: "np.ndarray"
    ) -> "np.ndarray":
        import torch

        from npu_backend.calls import inference
        from npu_backend.convert import load
        from npu_backend.device import find_device

        device = find_device(config.device)
        weights = load(model.path, dtype, step=model.step, device=device, adapter=model.adapter)
        tokens = torch.from_numpy(ids).long().to(device)
        visible = torch.from_numpy(attention_mask).to(device)
        with inference(weights):
            return weights(tokens, visible).float().cpu().numpy()

    return verify.run(config, _open_source, logits)


def _open_source(model: Model) -> "Source":
    from jaxllada.common.weights.opening import open_folder

    return open_folder(model.path, model.step, adapter=model.adapter)
