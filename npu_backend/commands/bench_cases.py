"""What torch brings to `bench`: models with random weights, a training step, times and memory."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jaxllada.apps.bench_cases import (
    LEARNING_RATE,
    WEIGHT_DECAY,
    best_gemm,
    check_family,
    random_shape,
    training_batch,
)
from jaxllada.common import timing
from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.opening import read_config
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.driver import Progress
from jaxllada.common.engine import ShouldStop
from jaxllada.common.run.origin import Origin
from jaxllada.common.scores import Question, QuestionScores
from jaxllada.common.trace import Trace
from npu_backend.convert import load, save
from npu_backend.device import (
    device_name,
    find_device,
    forget_peak_memory,
    peak_memory,
    synchronize,
)
from npu_backend.diffusion.likelihood import score
from npu_backend.models.mask_predictor import MaskPredictor
from npu_backend.probe import check_mode, choose_kernels
from npu_backend.sampling.generate import sample_progress, sample_trace
from npu_backend.sharding import Mesh
from npu_backend.train.optim import make_optimizer
from npu_backend.train.start import make_network, set_weights
from npu_backend.train.state import initial_state
from npu_backend.train.step import train_step


class Sampler:
    """See `apps.bench_backend.Sampler`."""

    def __init__(self, options: Any, device: torch.device, ops: str):
        compute = ComputeConfig(dtype=options.dtype, param_dtype=options.dtype)
        self.model = random_model(options, compute, device, sharpness=options.sharpness)
        rows, length = options.batch_size or 1, options.prompt_length + options.gen_length
        self.model.use(choose_kernels(ops, device, self.config, compute, batch=rows, length=length))

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def sample(self, prompt: np.ndarray, settings: SamplingConfig) -> Trace:
        trace = sample_trace(self.model, prompt, settings)
        synchronize(self.model.device)
        return trace

    def sample_rows(
        self,
        prompt: np.ndarray,
        settings: SamplingConfig,
        should_stop: ShouldStop | None,
        *,
        drops_rows: bool,
    ) -> Progress:
        pieces = sample_progress(
            self.model, prompt, settings, should_stop=should_stop, drops_rows=drops_rows
        )
        return list(pieces)[-1]

    def score(
        self, questions: Sequence[Question], settings: LikelihoodConfig
    ) -> list[QuestionScores]:
        return score(self.model, questions, settings)

    def save(self, folder: str) -> None:
        save(self.model, folder)


class Trainer:
    """See `apps.bench_backend.Trainer`."""

    def __init__(self, options: Any, device: torch.device, ops: str):
        compute = ComputeConfig(dtype=options.dtype, remat=options.remat)
        shape = random_shape(options)
        folder = None if shape is not None else Path(options.model_name_or_path)
        config = read_config(folder) if folder is not None else shape
        assert config is not None
        check_family(options, config)
        self.batch = training_batch(options, config)
        rows, length = self.batch.tokens.shape[1:]
        kernels = choose_kernels(ops, device, config, compute, batch=rows, length=length)
        self._mesh = Mesh(device)
        self._network, self._objective = make_network(config, compute, self._mesh)
        set_weights(
            self._network, Origin(config, folder, folder is not None), self._mesh, options.seed
        )
        self._network.use(kernels)
        self._objective.train()
        self._optimizer = make_optimizer(
            TrainConfig(weight_decay=WEIGHT_DECAY), fused=device.type != "npu" or kernels.adamw
        )
        self._state = initial_state(self._network, with_ema=False)
        # A rate of zero leaves the weights alone; the moments are made anew.
        seconds = []
        for _ in range(2):
            begun = time.perf_counter()
            self._step(0.0)
            seconds.append(time.perf_counter() - begun)
        self._state = initial_state(self._network, with_ema=False)
        self.compile_seconds = max(0.0, seconds[0] - seconds[1])
        self.facts: dict[str, Any] = {}

    @property
    def config(self) -> ModelConfig:
        return self._network.config

    def step(self) -> float:
        return self._step(LEARNING_RATE)

    def _step(self, learning_rate: float) -> float:
        metrics = train_step(
            self._state,
            self.batch,
            learning_rate,
            0,
            objective=self._objective,
            optimizer=self._optimizer,
            mesh=self._mesh,
            loss_norm="token",
            ema_decay=0.0,
            dropout_seed=None,
        )
        synchronize(self._mesh.device)
        return metrics.loss

    def save(self, folder: str) -> None:
        save(self._network, folder)


class Bench:
    """See `apps.bench_backend.Backend`; arguments are the keys `device` and `ops`."""

    program = "npu_backend"

    def __init__(self, device: str = "auto", ops: str = "auto"):
        self._device, self._ops = find_device(device), ops
        check_mode(ops, self._device)

    @property
    def device(self) -> str:
        return f"1 x {device_name(self._device)}"

    def sampler(self, options: Any) -> Sampler:
        return Sampler(options, self._device, self._ops)

    def trainer(self, options: Any) -> Trainer:
        return Trainer(options, self._device, self._ops)

    def gemm_flops(self, dtype: str) -> float:
        def product(size: int) -> Any:
            generator = torch.Generator().manual_seed(0)
            matrix = torch.randn((size, size), generator=generator)
            matrix = matrix.to(self._device, getattr(torch, dtype))

            def multiply() -> None:
                torch.matmul(matrix, matrix)
                synchronize(self._device)

            return multiply

        return best_gemm(product)

    def forget_peaks(self) -> None:
        timing.forget_peak_memory()
        forget_peak_memory(self._device)

    def peaks(self) -> dict[str, int]:
        on_device = {"peak_device_bytes": peak_memory(self._device)}
        resident = {"peak_resident_bytes": timing.peak_memory()}
        return resident if self._device.type == "cpu" else resident | on_device


def random_model(
    options: Any, compute: ComputeConfig, device: torch.device, *, sharpness: float
) -> MaskPredictor:
    """The model of the bench: a folder's, or random weights of a shape.

    `sharpness` multiplies a random head.
    """
    shape = random_shape(options)
    if shape is None:
        model = load(options.model_name_or_path, compute=compute, device=device)
        check_family(options, model.config)
        return model
    check_family(options, shape)
    mesh = Mesh(device)
    model, _ = make_network(shape, compute, mesh)
    set_weights(model, Origin(shape, None), mesh, options.seed)
    if model.ff_out is not None:
        with torch.no_grad():
            model.ff_out.weight.mul_(sharpness)
    return model
