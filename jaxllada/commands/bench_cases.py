"""What JAX brings to `bench`: models with random weights, a compiled step, times and memory."""

import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllada.apps.bench_cases import (
    LEARNING_RATE,
    WEIGHT_DECAY,
    best_gemm,
    check_family,
    random_shape,
    training_batch,
)
from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.driver import Progress
from jaxllada.common.engine import ShouldStop
from jaxllada.common.scores import Question, QuestionScores
from jaxllada.common.timing import forget_peak_memory, peak_memory
from jaxllada.common.trace import Trace
from jaxllada.convert import load, save
from jaxllada.diffusion.likelihood import score
from jaxllada.models.mask_predictor import MaskPredictor
from jaxllada.sampling.generate import sample_progress, sample_trace
from jaxllada.train.optim import make_optimizer
from jaxllada.train.state import initial_state
from jaxllada.train.step import train_step


class Sampler:
    """See `apps.bench_backend.Sampler`."""

    def __init__(self, options: Any):
        compute = ComputeConfig(dtype=options.dtype, param_dtype=options.dtype)
        self.model = random_model(options, compute, sharpness=options.sharpness)

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def sample(self, prompt: np.ndarray, settings: SamplingConfig) -> Trace:
        return sample_trace(self.model, prompt, settings)  # it is fetched: nothing is left to do

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

    def __init__(self, options: Any):
        compute = ComputeConfig(dtype=options.dtype, remat=options.remat)
        self.model = random_model(options, compute, sharpness=1.0)
        self.batch = training_batch(options, self.model.config)
        optimizer = make_optimizer(TrainConfig(weight_decay=WEIGHT_DECAY))
        graphdef, params = nnx.split(self.model)
        state = initial_state(nnx.to_pure_dict(params), optimizer, with_ema=False)
        step = functools.partial(
            train_step, graphdef=graphdef, optimizer=optimizer, loss_norm="token",
            ema_decay=0.0, dropout_seed=None,
        )  # fmt: skip
        self._numbers = jnp.float32(LEARNING_RATE), jnp.int32(0)
        begun = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=0).lower(state, self.batch, *self._numbers)
        self._program = lowered.compile()
        self.compile_seconds = time.perf_counter() - begun
        memory = self._program.memory_analysis()
        self.facts = {"program_temporary_bytes": memory.temp_size_in_bytes if memory else None}
        self._state = jax.device_put(state)

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def step(self) -> float:
        self._state, metrics = self._program(self._state, self.batch, *self._numbers)
        return float(jax.block_until_ready((self._state, metrics))[1].loss)

    def save(self, folder: str) -> None:
        save(self.model, folder)


class Bench:
    """See `apps.bench_backend.Backend`."""

    program = "jaxllada"

    @property
    def device(self) -> str:
        return f"{jax.device_count()} x {jax.devices()[0].device_kind}"

    def sampler(self, options: Any) -> Sampler:
        return Sampler(options)

    def trainer(self, options: Any) -> Trainer:
        return Trainer(options)

    def gemm_flops(self, dtype: str) -> float:
        multiply = jax.jit(lambda a: a @ a)

        def product(size: int) -> Any:
            matrix = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
            return lambda: jax.block_until_ready(multiply(matrix))

        return best_gemm(product)

    def forget_peaks(self) -> None:
        forget_peak_memory()

    def peaks(self) -> dict[str, int]:
        """That of devices is of the whole process: XLA cannot start it anew."""
        stats = [device.memory_stats() for device in jax.local_devices()]
        on_device = [found["peak_bytes_in_use"] for found in stats if found]
        peaks = {"peak_device_bytes": max(on_device)} if on_device else {}
        return {"peak_resident_bytes": peak_memory(), **peaks}


def random_model(options: Any, compute: ComputeConfig, *, sharpness: float) -> MaskPredictor:
    """The model of the bench: a folder's, or random weights of a shape.

    `sharpness` multiplies a random head.
    """
    shape = random_shape(options)
    if shape is None:
        model = load(options.model_name_or_path, compute=compute)
        check_family(options, model.config)
        return model
    check_family(options, shape)
    make = jax.jit(lambda key: MaskPredictor(shape, compute=compute, rngs=key))
    model = make(jax.random.key(options.seed))
    if sharpness == 1.0 or model.ff_out is None:
        return model
    graphdef, state = nnx.split(model)
    weights: Any = nnx.to_pure_dict(state)
    weights["ff_out"]["weight"] *= sharpness
    return nnx.merge(graphdef, weights)
