"""AdamW with decoupled decay (arXiv:1711.05101v3), fed with the learning rate from outside."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxllada.common.config.train import TrainConfig

Tree = Any


def path_names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Names along a path of `jax.tree_util`, whatever containers it passes through."""
    return tuple(
        str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part))))
        for part in path
    )


def decay_mask(params: Tree) -> Tree:
    """True for matrices and embeddings, False for norms and biases.

    Decided by name: in stacked blocks a norm weight has two axes, like a matrix.
    """

    def decays(path: tuple[Any, ...], _: Array) -> bool:
        names = path_names(path)
        return names[-1] != "bias" and not any("norm" in name or name == "ln_f" for name in names)

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Clip by global norm, Adam, decay: the direction to subtract after scaling by the rate.

    Its state is float32; initialise it with `initial_moments`.
    """
    clip = [optax.clip_by_global_norm(config.max_grad_norm)] if config.max_grad_norm else []
    adam = optax.scale_by_adam(config.adam_beta1, config.adam_beta2, config.adam_epsilon)
    return optax.chain(*clip, adam, optax.add_decayed_weights(config.weight_decay, mask=decay_mask))


def initial_moments(optimizer: optax.GradientTransformation, params: Tree) -> optax.OptState:
    """State of the optimiser in float32, also where the weights are stored in bfloat16."""
    return optimizer.init(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params))


def descend(params: Tree, direction: Tree, learning_rate: Float[Array, ""]) -> Tree:
    """params - learning_rate * direction, rounded to the type of the weights at the end."""
    return jax.tree.map(
        lambda leaf, step: (leaf.astype(jnp.float32) - learning_rate * step).astype(leaf.dtype),
        params,
        direction,
    )


def average(ema: Tree, params: Tree, decay: float, step: Array) -> Tree:
    """Moves an exponential average of the weights; float32.

    The decay starts low, min(decay, (1 + step) / (10 + step)), so that the random start is
    forgotten (as in MDLM, arXiv:2406.07524v2).
    """
    decay_now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(
        lambda old, new: old + (1 - decay_now) * (new.astype(jnp.float32) - old), ema, params
    )
