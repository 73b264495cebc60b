"""Measures the validation bound of a model in nats per token (LLaDA, arXiv:2502.09992v3, eq. 3).

    python -m npu_backend evaluate output/run
    python -m npu_backend evaluate path/to/hf-folder --dataset_args data/books --eval_mc 8 --json

The noise is fixed and the same as in `jaxllada evaluate`, so numbers of different models, and of
both packages, compare. Two baselines in the same unit stand beside the bound. A run folder brings
its own data settings.
"""

import dataclasses
import json
from typing import TYPE_CHECKING, Literal

from jaxllada.common.config.evaluate import EvaluateConfig

if TYPE_CHECKING:
    from jaxllada.common.run.evaluation import Evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(EvaluateConfig):
    """One evaluation, and the device it runs on."""

    device: Literal["auto", "npu", "cuda", "cpu"] = "auto"
    """Where to compute: auto takes the first of npu, cuda and cpu that is there."""
    ops: Literal["auto", "fused", "plain"] = "auto"
    """Kernels on an NPU: fused, plain torch, or (auto) fused where a probe finds them exact."""


def run(config: Config) -> None:
    """Measures and prints."""
    from jaxllada.common.run.evaluation import table

    found, limits = measure(config)
    if config.json:
        print(json.dumps(found.to_dict() | limits))
    else:
        print(table(found, limits))


def measure(config: Config) -> "tuple[Evaluation, dict[str, float]]":
    """Returns the evaluation and the baselines, both in nats per token."""
    from jaxllada.common.config.compute import compute_config
    from jaxllada.common.run.evaluation import baselines
    from jaxllada.common.run.verbs import evaluated

    origin, tokenizer, settings, rows = evaluated(config)
    from npu_backend.convert import load
    from npu_backend.device import find_device
    from npu_backend.probe import choose_kernels
    from npu_backend.sharding import Mesh
    from npu_backend.train.inputs import make_validation
    from npu_backend.train.step import Objective

    device, compute = find_device(config.device), compute_config(settings)
    assert origin.folder is not None
    step = None if config.step < 0 else config.step
    network = load(
        origin.folder, step=step, compute=compute, device=device, adapter=config.adapter or None
    )
    batch, length = settings.per_device_eval_batch_size, settings.max_length
    kernels = choose_kernels(
        config.ops, device, network.config, compute, batch=batch, length=length
    )
    network.use(kernels)
    evaluate = make_validation(
        settings, Objective(network), network.config, rows["test"], Mesh(device), tokenizer
    )
    limits = baselines(rows["train"], rows["test"], network.config, settings.eval_max_rows)
    return evaluate(), limits
