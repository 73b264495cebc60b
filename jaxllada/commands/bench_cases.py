"""The two workloads of `jaxllada bench`, ready to be called again and again.

FLOPs are those the model asks for, not those an implementation happens to spend: in training the
head counts at masked positions only, in sampling at the positions still open.
"""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.presets import PRESETS, preset
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.counting import count_parameters, flops_per_token
from jaxllada.common.data.batches import BatchSource
from jaxllada.convert import load, save
from jaxllada.models.mask_predictor import MaskPredictor
from jaxllada.sampling.generate import sample
from jaxllada.train.optim import make_optimizer
from jaxllada.train.state import initial_state
from jaxllada.train.step import train_step


@dataclass
class Case:
    """One workload: `call` does it once and returns when it is done."""

    call: Callable[[], Any]
    save: Callable[[str], None]
    tokens: int
    flops: float
    compile_seconds: float
    facts: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    compare: Callable[[Any, Mapping[str, Any]], dict[str, Any]] = lambda ours, theirs: {}


def build_train(config: Any) -> Case:
    """One optimiser step (forward, backward, clip, AdamW) on the same batch each time."""
    compute = ComputeConfig(dtype=config.dtype, remat=config.remat)
    model = random_model(config, compute, sharpness=1.0)
    rows = config.batch_size or 2
    tokens = np.random.default_rng(config.seed).integers(
        0, model.config.mask_id, (rows, config.length), dtype=np.int32
    )
    source = BatchSource(
        tokens,
        seed=config.seed,
        micro_batch=rows,
        mask_id=model.config.mask_id,
        pad_id=model.config.pad_token_id,
        max_length=config.length,
        time_sampling="stratified",
    )
    # Half of all tokens are masked on average; work follows their number, so take such a batch.
    batch = min((source.batch(i) for i in range(64)), key=lambda b: abs(b.is_masked.mean() - 0.5))
    optimizer = make_optimizer(TrainConfig(weight_decay=0.1))
    graphdef, params = nnx.split(model)
    state = initial_state(nnx.to_pure_dict(params), optimizer, with_ema=False)
    step = functools.partial(
        train_step, graphdef=graphdef, optimizer=optimizer, loss_norm="token",
        ema_decay=0.0, dropout_seed=None,
    )  # fmt: skip
    rate, cursor = jnp.float32(1e-4), jnp.int32(0)
    begun = time.perf_counter()
    program = jax.jit(step, donate_argnums=0).lower(state, batch, rate, cursor).compile()
    compile_seconds = time.perf_counter() - begun
    memory = program.memory_analysis()
    holder = [jax.device_put(state)]

    def call() -> dict[str, float]:
        begun = time.perf_counter()
        holder[0], metrics = program(holder[0], batch, rate, cursor)
        loss = float(jax.block_until_ready((holder[0], metrics))[1].loss)
        return {"seconds": time.perf_counter() - begun, "loss": loss}

    masked = float(batch.is_masked.mean())
    forward = flops_per_token(model.config, config.length, head_fraction=masked)
    return Case(
        call=call,
        save=lambda folder: save(model, folder),
        tokens=tokens.size,
        flops=3 * forward * tokens.size,
        compile_seconds=compile_seconds,
        compare=lambda ours, theirs: {"loss": ours["loss"], "beside_loss": theirs.get("loss")},
        facts=_size(model)
        | {"batch_size": rows, "length": config.length, "masked_fraction": masked}
        | {"program_temporary_bytes": memory.temp_size_in_bytes if memory else None},
        task={
            "tokens": batch.tokens[0].tolist(),
            "noisy": batch.noisy[0].tolist(),
            "mask_rate": batch.mask_rate[0].tolist(),
        },
    )


def build_sample(config: Any) -> Case:
    """One whole generation, greedy, published settings."""
    settings = SamplingConfig(
        steps=config.steps, gen_length=config.gen_length, block_length=config.block_length
    )
    compute = ComputeConfig(dtype=config.dtype, param_dtype=config.dtype)
    model = random_model(config, compute, sharpness=config.sharpness)
    prompt = random_prompt(config, model)
    rows = len(prompt)
    begun = time.perf_counter()
    jax.block_until_ready(sample(model, prompt, settings))
    first = time.perf_counter() - begun
    begun = time.perf_counter()
    jax.block_until_ready(sample(model, prompt, settings))
    steady = time.perf_counter() - begun

    def call() -> dict[str, Any]:
        begun = time.perf_counter()
        tokens = np.asarray(sample(model, prompt, settings))
        return {"seconds": time.perf_counter() - begun, "tokens": tokens.tolist()}

    def compare(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
        if "tokens" not in theirs:
            return {}
        equal = np.array(ours["tokens"]) == np.array(theirs["tokens"])
        return {"fraction_of_equal_tokens": float(equal[:, config.prompt_length :].mean())}

    length = config.prompt_length + config.gen_length
    body = flops_per_token(model.config, length, head_fraction=0) * length * config.steps
    # On average half of a block is still open when its logits are needed.
    head = 2 * model.config.rows * model.config.d_model * (config.block_length + 1) / 2
    return Case(
        call=call,
        save=lambda folder: save(model, folder),
        tokens=rows * config.gen_length,
        flops=rows * (body + head * config.steps),
        compile_seconds=first - steady,
        facts=_size(model)
        | {"batch_size": rows, "prompt_length": config.prompt_length}
        | {key: getattr(config, key) for key in ("gen_length", "steps", "block_length")},
        task={"prompt": prompt.tolist(), "batch_size": rows},
        compare=compare,
    )


def random_prompt(config: Any, model: MaskPredictor) -> np.ndarray:
    """Random token ids [B, P] without masks."""
    shape = (config.batch_size or 1, config.prompt_length)
    highest = min(model.config.vocab_size, model.config.mask_id)
    return np.random.default_rng(config.seed).integers(0, highest, shape)


def gemm_flops(dtype: str, *, size: int = 2048, calls: int = 5) -> float:
    """Measures this machine's matrix product of `size` squared, in FLOPs per second."""
    size = size if jax.default_backend() == "cpu" else 4 * size
    matrix = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    multiply = jax.jit(lambda a: a @ a)
    jax.block_until_ready(multiply(matrix))
    best = float("inf")
    for _ in range(calls):
        begun = time.perf_counter()
        jax.block_until_ready(multiply(matrix))
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def random_model(config: Any, compute: ComputeConfig, *, sharpness: float) -> MaskPredictor:
    """The model of the bench: a folder's, or random weights of a preset's shape.

    `sharpness` multiplies a preset's head.
    """
    name = config.model_name_or_path
    if name not in PRESETS and "/" in name:
        return load(name, compute=compute)
    model_config = preset(name)
    longest = max(config.length, config.prompt_length + config.gen_length)
    model_config = replace(
        model_config, max_sequence_length=max(model_config.max_sequence_length, longest)
    )
    make = jax.jit(lambda key: MaskPredictor(model_config, compute=compute, rngs=key))
    model = make(jax.random.key(config.seed))
    if sharpness == 1.0 or model.ff_out is None:
        return model
    graphdef, state = nnx.split(model)
    weights: Any = nnx.to_pure_dict(state)
    weights["ff_out"]["weight"] *= sharpness
    return nnx.merge(graphdef, weights)


def _size(model: MaskPredictor) -> dict[str, Any]:
    return {"parameters": count_parameters(model.config).total}
