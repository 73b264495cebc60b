"""A complete training run of seconds, shared by the tests of the loop and of the mesh."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np

from jaxllada.common.config.presets import PRESETS
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.run.run_folder import RunFolder
from jaxllada.sharding import make_mesh
from jaxllada.train.checkpoint import Checkpoints
from jaxllada.train.inputs import make_validation, train_source
from jaxllada.train.loop import Outcome, Task, train
from jaxllada.train.start import Origin, compute_config, split_abstract, starting_params

TINY = PRESETS["tiny"]
DROPPING = dataclasses.replace(TINY, residual_dropout=0.1, embedding_dropout=0.1)


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


def make_task(config: TrainConfig, model: Any = TINY, rows: Any = None, **changes: Any) -> Task:
    mesh = make_mesh(config.mesh_data, config.mesh_fsdp, config.mesh_tensor)
    compute = compute_config(config)
    graphdef, shapes = split_abstract(model, compute)
    source = train_source(config, make_rows() if rows is None else rows, model, mesh)
    origin = Origin(model, None)
    validation = make_validation(config, graphdef, model, make_rows(10, seed=1), mesh)
    task = Task(
        model=model,
        graphdef=graphdef,
        shapes=shapes,
        make_params=lambda: starting_params(origin, model, compute, mesh, config.seed),
        mesh=mesh,
        source=source,
        total_steps=config.total_steps(source.steps_per_epoch),
        evaluate=validation,
    )
    return dataclasses.replace(task, **changes)


def run_training(
    config: TrainConfig, model: Any = TINY, rows: Any = None, **changes: Any
) -> Outcome:
    folder = RunFolder(config, Checkpoints)
    step = folder.resume_step(config)
    return train(config, folder, make_task(config, model, rows, **changes), step)


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
