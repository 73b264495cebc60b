"""What the kernels read of a model: its weights in an order of their own, made once for a model.

Weights are arrays that never change, so what was made of them holds as long as they live.
"""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxllada.common.config.cache import FeatureCache
from jaxllada.common.policy import Policy
from jaxllada.models.packed import PackedBlocks, can_pack, pack
from jaxllada.native.head import PackedHead, can_pack_head, pack_head


class Packed(NamedTuple):
    """None where no kernel takes part, or one that reads weights as they are."""

    blocks: PackedBlocks | None = None
    head: PackedHead | None = None


_made: dict[tuple[int, ...], Any] = {}


def packed_of(model: Any, policy: Policy) -> Packed:
    """Returns what a run by this policy reads of a model."""
    # dLLM-Cache looks into the blocks.
    is_whole = not isinstance(policy.cache, FeatureCache)
    blocks = once(pack, model, model.blocks) if is_whole and can_pack(model) else None
    weight = model.head_weight
    is_plain = weight.dtype == model.compute.dtype and can_pack_head(weight)
    return Packed(blocks, once(pack_head, weight, model.wte if model.ff_out is None else model.ff_out.weight) if is_plain else None)


def once(make: Callable[[Any], Any], argument: Any, weights: Any) -> Any:
    """Returns make(argument), made once for these weights and kept as long as they live."""
    arrays = jax.tree.leaves(weights)
    name = (id(make), *map(id, arrays))
    if name not in _made:
        _made[name] = make(argument)
        # The first weight that goes takes it along: another may get its id.
        for array in arrays:
            weakref.finalize(array, _made.pop, name, None)
    return _made[name]
