"""Peak memory of the real training step on the real allocator of torch_npu, nothing computed.

    python -m tests.npu.dry_memory CASES.json

A case is {"model": preset or fields of a config, "train": settings, "devices": n, "fused": bool}.
Prints one JSON line a case: bytes allocated and reserved at the peak of the second step. Each case
has a process of its own; other ranks are played by torch's fake backend. Adapters are a step of
their own here: base weights frozen in bfloat16, adapters in float32.
"""

import dataclasses
import functools
import json
import os
import sys
from pathlib import Path

import numpy as np

import tests.ascend_sim.ascend_sim as ascend_sim  # before torch
from jaxllada.common.config.compute import ComputeConfig, compute_config
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.presets import PRESETS
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.data.batches import Batch


def measure(case: dict) -> dict:
    """Runs two steps of a case and returns what the allocator counted."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.nn.parallel import DistributedDataParallel
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from npu_backend.ops import FUSED, PLAIN
    from npu_backend.sharding import DATA, FSDP, Mesh
    from npu_backend.train import start, step
    from npu_backend.train.optim import make_optimizer
    from npu_backend.train.state import initial_state

    config, devices = TrainConfig(**case["train"]), case.get("devices", 1)
    device = torch.device("npu", 0)
    mesh = Mesh(device)
    if devices > 1:
        dist.init_process_group("cpu:fake,npu:fake", rank=0, world_size=devices, store=FakeStore())
        fsdp = config.mesh_fsdp
        layout = init_device_mesh("npu", (devices // fsdp, fsdp), mesh_dim_names=(DATA, FSDP))
        mesh = Mesh(device, devices // fsdp, fsdp, 0, layout)
    model = model_of(case["model"])
    if config.lora:
        start.abstract_model = functools.partial(_adapted, config)
    network, objective = start.make_network(model, compute_config(config), mesh)
    network.use(FUSED if case.get("fused", True) else PLAIN)
    if isinstance(objective, DistributedDataParallel):  # the fake backend gives it no results
        objective.register_comm_hook(None, _summed)
    objective.train()
    state = initial_state(network, with_ema=config.ema_decay > 0)
    optimizer = make_optimizer(config)
    # The sums a step looks at on the host: a dry run has no values.
    step.sum_over = lambda mesh, sums: torch.ones(sums.shape) if len(sums) > 2 else sums
    for _ in range(2):
        step.train_step(
            state,
            batch_of(config),
            1e-4,
            0,
            objective=objective,
            optimizer=optimizer,
            mesh=mesh,
            loss_norm=config.loss_norm,
            ema_decay=config.ema_decay,
            dropout_seed=None,
        )
    return {
        "allocated": torch.npu.max_memory_allocated(),
        "reserved": torch.npu.max_memory_reserved(),
    }


def _adapted(config: TrainConfig, model: ModelConfig, compute: ComputeConfig):
    """A model without memory, frozen, with the adapters of a run."""
    from jaxllada.common.config.lora import lora_config
    from npu_backend.models.family import abstract_model
    from npu_backend.models.lora import add_adapters

    lora = lora_config(config)
    assert lora is not None
    return add_adapters(abstract_model(model, compute), lora)


def _summed(state, bucket):
    """Pretends that a bucket of gradients was summed over all processes."""
    import torch

    done = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def model_of(value) -> ModelConfig:
    """A preset, with other fields where the case gives some."""
    if isinstance(value, str):
        return PRESETS[value]
    return dataclasses.replace(PRESETS[value["preset"]], **value["changes"])


def batch_of(config: TrainConfig) -> Batch:
    """A batch of which every second token is masked."""
    shape = (
        config.gradient_accumulation_steps,
        config.per_device_train_batch_size,
        config.max_length,
    )
    masked = np.broadcast_to(np.arange(shape[2]) % 2 == 0, shape)
    return Batch(
        tokens=np.zeros(shape, np.int32),
        noisy=np.zeros(shape, np.int32),
        is_masked=masked.copy(),
        mask_rate=np.full(shape[:2], 0.5, np.float32),
        maskable=np.ones(shape, bool),
        visible=np.ones(shape, bool) if config.random_length_ratio else None,
    )


def main() -> None:
    for case in json.loads(Path(sys.argv[1]).read_text()):
        sys.stdout.flush()
        if os.fork():  # a process for each: memory stays in use after an out-of-memory error
            os.wait()
            continue
        import torch

        try:
            with ascend_sim.dry_run():
                found = measure(case)
        except torch.OutOfMemoryError as error:
            found = {"error": str(error).split(".")[0]}
        print(json.dumps(found), flush=True)
        os._exit(0)


if __name__ == "__main__":
    main()
