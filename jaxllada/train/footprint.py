"""Memory of the compiled training step, as XLA itself counts it; nothing is allocated."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllada.common.config.lora import drops_inputs, lora_config
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.data.batches import Batch
from jaxllada.models.lora import divide
from jaxllada.sharding import BATCH, batch_shards, check_divides, make_mesh, replicated, shardings
from jaxllada.train.optim import make_optimizer
from jaxllada.train.start import compute_config, split_abstract
from jaxllada.train.state import initial_state
from jaxllada.train.step import train_step


class CompiledMemory(NamedTuple):
    """Bytes of one device. The state is donated, so outputs take nothing of their own."""

    arguments: int
    temporaries: int
    outputs: int

    @property
    def total(self) -> int:
        return sum(self)


def compiled_memory(
    config: TrainConfig, model: ModelConfig, devices: Sequence[Any] | None = None
) -> CompiledMemory:
    """Compiles the step of a run on abstract arguments and reads the compiler's own analysis.

    `devices` may be those of a topology that is not here. The mesh is that of `config`.
    """
    mesh = make_mesh(config.mesh_data, config.mesh_fsdp, config.mesh_tensor, devices=devices)
    check_divides(mesh, model)
    graphdef, weights = split_abstract(model, compute_config(config), lora_config(config))
    params, frozen = divide(weights, model)
    if frozen is not None:
        frozen = _placed(frozen, shardings(mesh, frozen))
    optimizer = make_optimizer(config)
    initial = functools.partial(initial_state, optimizer=optimizer, with_ema=config.ema_decay > 0)
    shapes = jax.eval_shape(lambda params: initial(params), params)
    places = shardings(mesh, shapes)
    state = _placed(shapes, places)
    rates = (model.attention_dropout, model.residual_dropout, model.embedding_dropout)
    step = functools.partial(
        train_step,
        graphdef=graphdef,
        optimizer=optimizer,
        loss_norm=config.loss_norm,
        ema_decay=config.ema_decay,
        dropout_seed=config.seed if any(rates) or drops_inputs(config) else None,
        mesh=mesh,
    )
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(places, replicated(mesh)))
    rate, cursor = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    compiled = jitted.lower(state, _abstract_batch(config, mesh), rate, cursor, frozen).compile()
    found: Any = compiled.memory_analysis()
    return CompiledMemory(
        found.argument_size_in_bytes,
        found.temp_size_in_bytes,
        found.output_size_in_bytes - found.alias_size_in_bytes,
    )


def _placed(shapes: Any, places: Any) -> Any:
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        places,
    )


def _abstract_batch(config: TrainConfig, mesh: Any) -> Batch:
    """A global batch of shapes; with an attention mask where rows may be cut short."""
    rows = config.per_device_train_batch_size * batch_shards(mesh)
    shape = (config.gradient_accumulation_steps, rows, config.max_length)
    place = NamedSharding(mesh, P(None, BATCH))

    def of(kind: Any, shape: tuple[int, ...] = shape) -> Any:
        return jax.ShapeDtypeStruct(shape, kind, sharding=place)

    return Batch(
        tokens=of(jnp.int32),
        noisy=of(jnp.int32),
        is_masked=of(jnp.bool_),
        mask_rate=of(jnp.float32, shape[:2]),
        maskable=of(jnp.bool_),
        visible=of(jnp.bool_) if config.random_length_ratio else None,
    )
