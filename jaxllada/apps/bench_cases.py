"""The workloads of `bench`, ready to be called again and again, for either backend.

FLOPs are those the model asks for, not those an implementation happens to spend: in training the
head counts at masked positions only, in sampling at the positions still open.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jaxllada.apps.bench_backend import Backend, Sampler
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.opening import read_config
from jaxllada.common.config.presets import PRESETS, preset
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.counting import count_parameters, flops_per_token
from jaxllada.common.data.batches import BatchSource
from jaxllada.common.data.cutting import Batch
from jaxllada.common.errors import UserError

LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.1


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


def train_case(options: Any, backend: Backend) -> Case:
    """One optimiser step (forward, backward, clip, AdamW) on the same batch each time."""
    trainer = backend.trainer(options)
    batch, model = trainer.batch, trainer.config
    masked = float(batch.is_masked.mean())
    forward = flops_per_token(model, options.length, head_fraction=masked)

    def call() -> dict[str, float]:
        begun = time.perf_counter()
        loss = trainer.step()
        return {"seconds": time.perf_counter() - begun, "loss": loss}

    return Case(
        call=call,
        save=trainer.save,
        tokens=batch.tokens.size,
        flops=3 * forward * batch.tokens.size,
        compile_seconds=trainer.compile_seconds,
        compare=lambda ours, theirs: {"loss": ours["loss"], "beside_loss": theirs.get("loss")},
        facts=_size(model)
        | {"batch_size": batch.tokens.shape[1], "length": options.length}
        | {"masked_fraction": masked}
        | dict(trainer.facts),
        task={
            "tokens": batch.tokens[0].tolist(),
            "noisy": batch.noisy[0].tolist(),
            "mask_rate": batch.mask_rate[0].tolist(),
        },
    )


def sample_case(options: Any, backend: Backend) -> Case:
    """One whole generation, greedy, published settings."""
    settings = exact_settings(options)
    sampler = backend.sampler(options)
    prompt = random_prompt(options, sampler)
    rows = len(prompt)
    call = sampling_call(sampler, prompt, settings)
    first, steady = call()["seconds"], call()["seconds"]

    def compare(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
        if "tokens" not in theirs:
            return {}
        equal = np.array(ours["tokens"]) == np.array(theirs["tokens"])
        return {"fraction_of_equal_tokens": float(equal[:, options.prompt_length :].mean())}

    model, steps = sampler.config, options.steps
    length = options.prompt_length + options.gen_length
    body = flops_per_token(model, length, head_fraction=0) * length * steps
    # On average half of a block is still open when its logits are needed.
    head = 2 * model.rows * model.d_model * (options.block_length + 1) / 2
    return Case(
        call=call,
        save=sampler.save,
        tokens=rows * options.gen_length,
        flops=rows * (body + head * steps),
        compile_seconds=max(0.0, first - steady),
        facts=_size(model)
        | {"batch_size": rows, "prompt_length": options.prompt_length}
        | {key: getattr(options, key) for key in ("gen_length", "steps", "block_length")},
        task={"prompt": prompt.tolist(), "batch_size": rows},
        compare=compare,
    )


def exact_settings(options: Any) -> SamplingConfig:
    """The settings of the reference decode."""
    return SamplingConfig(
        steps=options.steps, gen_length=options.gen_length, block_length=options.block_length
    )


def sampling_call(
    sampler: Sampler, prompt: np.ndarray, settings: SamplingConfig
) -> Callable[[], dict[str, Any]]:
    """A contestant: one generation, with its time, its tokens (prompt included) and its calls."""

    def call() -> dict[str, Any]:
        begun = time.perf_counter()
        trace = sampler.sample(prompt, settings)
        seconds = time.perf_counter() - begun
        tokens = np.concatenate([trace.prompt, trace.tokens], axis=1)
        return {"seconds": seconds, "tokens": tokens.tolist(), "nfe": trace.num_steps}

    return call


def random_shape(options: Any) -> ModelConfig | None:
    """The shape to give random weights: a preset's or a config.json's; None for a folder's own."""
    name = options.model_name_or_path
    if name not in PRESETS and "/" in name and not name.endswith(".json"):
        return None
    model = read_config(name) if name.endswith(".json") else preset(name)
    longest = max(options.length, options.prompt_length + options.gen_length)
    return replace(model, max_sequence_length=max(model.max_sequence_length, longest))


def check_family(options: Any, model: ModelConfig) -> None:
    """Raises `UserError` for a model that predicts no masks."""
    if model.is_causal:
        raise UserError(
            f"model_name_or_path={options.model_name_or_path}: bench measures mask predictors, "
            "not their autoregressive twin"
        )


def random_prompt(options: Any, model: Any) -> np.ndarray:
    """Random token ids [B, P] without masks; `model` is anything with a `config`."""
    shape = (options.batch_size or 1, options.prompt_length)
    highest = min(model.config.vocab_size, model.config.mask_id)
    return np.random.default_rng(options.seed).integers(0, highest, shape)


def training_batch(options: Any, model: ModelConfig) -> Batch:
    """Random tokens [1, B, L], about half of them masked: work follows the number of masks."""
    rows = options.batch_size or 2
    tokens = np.random.default_rng(options.seed).integers(
        0, model.mask_id, (rows, options.length), dtype=np.int32
    )
    source = BatchSource(
        tokens,
        seed=options.seed,
        micro_batch=rows,
        mask_id=model.mask_id,
        pad_id=model.pad_token_id,
        max_length=options.length,
        time_sampling="stratified",
    )
    return min((source.batch(i) for i in range(64)), key=lambda b: abs(b.is_masked.mean() - 0.5))


def best_gemm(product: Callable[[int], Callable[[], Any]], *, calls: int = 5) -> float:
    """FLOPs per second of the matrix product of n squared, where n fills the machine.

    `product(n)` prepares a product; calling what it returns multiplies and waits. n is doubled up
    to 8192 until one product takes a tenth of a second; each is repeated `calls` times, slow ones
    for a second.
    """
    size, best = 1024, 0.0
    while size < 8192 and best < 0.1:
        size *= 2
        multiply = product(size)
        multiply()
        times = []
        while len(times) < calls and sum(times) < 1.0:
            begun = time.perf_counter()
            multiply()
            times.append(time.perf_counter() - begun)
        best = min(times)
    return 2 * size**3 / best


def _size(model: ModelConfig) -> dict[str, Any]:
    return {"parameters": count_parameters(model).total}
