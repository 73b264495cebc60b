"""A complete training run of seconds in torch; the mirror of tests/jax/tiny_run.py."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jaxllada.common.config.compute import compute_config
from jaxllada.common.config.presets import PRESETS
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.run.origin import Origin
from jaxllada.common.run.run_folder import RunFolder
from npu_backend.sharding import make_mesh
from npu_backend.train.checkpoint import Checkpoints
from npu_backend.train.inputs import make_validation, train_source
from npu_backend.train.loop import Outcome, Task, train
from npu_backend.train.start import make_network, set_weights

TINY = PRESETS["tiny"]
DROPPING = dataclasses.replace(TINY, residual_dropout=0.1, embedding_dropout=0.1)
DEVICE = torch.device("npu", 0) if os.environ.get("NPU_SIM") == "1" else torch.device("cpu")


def make_rows(count: int = 50, length: int = 16, seed: int = 0) -> np.ndarray:
    """Rows that can be learned: counting modulo 40 from a random start."""
    starts = np.random.default_rng(seed).integers(0, 40, (count, 1))
    return ((starts + np.arange(length)) % 40).astype(np.int32)


def make_config(output_dir: Any, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "output_dir": str(output_dir), "max_length": 16, "per_device_train_batch_size": 8,
        "max_steps": 12, "learning_rate": 3e-3, "warmup_steps": 2, "logging_steps": 1,
        "save_steps": 4, "eval_strategy": "no", "save_total_limit": 0, "sample_length": 0,
        "random_length_ratio": 0.2, "compile_cache_dir": "none",
    }  # fmt: skip
    return TrainConfig(**(values | changes))


def make_task(
    config: TrainConfig,
    model: Any = TINY,
    rows: Any = None,
    *,
    device: torch.device = DEVICE,
    start: Path | None = None,
    **changes: Any,
) -> Task:
    """`start`: a folder with weights to begin from, instead of random ones."""
    mesh = make_mesh(device, config.mesh_data, config.mesh_fsdp)
    network, objective = make_network(model, compute_config(config), mesh)
    source = train_source(config, make_rows() if rows is None else rows, model, mesh)
    origin = Origin(model, start, start is not None)
    task = Task(
        model=model,
        network=network,
        objective=objective,
        set_weights=lambda: set_weights(network, origin, mesh, config.seed),
        mesh=mesh,
        source=source,
        total_steps=config.total_steps(source.steps_per_epoch),
        measure=make_validation(config, objective, model, make_rows(10, seed=1), mesh),
    )
    return dataclasses.replace(task, **changes)


def run_training(
    config: TrainConfig, model: Any = TINY, rows: Any = None, **changes: Any
) -> Outcome:
    folder = RunFolder(config, Checkpoints)
    step = folder.resume_step(config)
    task = make_task(config, model, rows, **changes)
    folder.checkpoints.place(task.mesh, model)  # pyright: ignore[reportAttributeAccessIssue]
    return train(config, folder, task, step)


def read_log(output_dir: Any) -> list[dict[str, Any]]:
    text = (Path(output_dir) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def losses(output_dir: Any) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_log(output_dir) if "loss" in row}


class Interrupting:
    """A source of batches that sends this process a signal while it builds one of them."""

    def __init__(self, source, at, number=signal.SIGTERM):
        self._source, self._at, self._number = source, at, number

    def __getattr__(self, name):
        return getattr(self._source, name)

    def batch(self, step):
        if step == self._at:
            os.kill(os.getpid(), self._number)
        return self._source.batch(step)


class Poisoned:
    """A source whose batches of some numbers have an infinite loss."""

    def __init__(self, source, bad):
        self._source, self._bad, self.asked = source, bad, []

    def __getattr__(self, name):
        return getattr(self._source, name)

    def batch(self, step):
        self.asked.append(step)
        batch = self._source.batch(step)
        if step not in self._bad:
            return batch
        return batch._replace(mask_rate=np.zeros_like(batch.mask_rate))
