"""Compares two checkpoints of any format, tensor by tensor, in bounded memory.

Tensors have the names of the module, `blocks.3.attention.q_proj.kernel`, in every format. Hashes
are those of the bytes as released files hold them: [out, in] for kernels, row by row.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.durable import array_bytes
from jaxllada.common.weights.names import Entry
from jaxllada.common.weights.source import Source
from jaxllada.common.weights.streaming import stored_blocks

Status = Literal["equal", "values", "dtype", "shape", "missing", "unexpected"]
# Values compared at a time: some temporary float32 arrays of 4 MB.
_PIECE = 1 << 20


@dataclass(frozen=True)
class Tensor:
    """One side of a comparison."""

    shape: tuple[int, ...]
    dtype: str
    sha256: str


@dataclass(frozen=True)
class Comparison:
    """What was found for one tensor.

    Of the status, `values` means the same type and other bits, `dtype` another type, `missing` and
    `unexpected` that it is in the first or in the second checkpoint alone. `differing` counts
    values of other bits (with another type: other values), `max_difference` is the largest
    |a - b|; None where that is no finite number, or nothing can be subtracted.
    """

    name: str
    status: Status
    a: Tensor | None
    b: Tensor | None
    differing: int | None = None
    max_difference: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def compare_weights(
    a: Source, b: Source, told: Callable[[int], None] = lambda _: None
) -> Iterator[Comparison]:
    """Yields a comparison for every tensor of either checkpoint, in the order of the first.

    `told` is called with numbers of bytes read of both; their sum is `weight_bytes(a) +
    weight_bytes(b)`. In memory is one tensor of each at most.
    """
    ours, theirs = (dict(_tensors(source)) for source in (a, b))
    with ThreadPoolExecutor(2, thread_name_prefix="hash") as pool:
        for name in dict.fromkeys([*ours, *theirs]):
            one, other = ours.get(name), theirs.get(name)
            if one is not None and other is not None:
                yield _compare(name, (a, *one), (b, *other), pool, told)
            elif one is not None:
                yield Comparison(name, "missing", _described(a, *one, told), None)
            elif other is not None:
                yield Comparison(name, "unexpected", None, _described(b, *other, told))


def weight_bytes(source: Source) -> int:
    """Bytes of all tensors."""
    return sum(
        math.prod(source.shape(entry))
        * source.dtype(entry).itemsize
        * (source.config.n_layers if entry.per_layer else 1)
        for entry in source.entries
    )


def config_differences(a: ModelConfig, b: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """Fields, of those that decide what a model computes, with their two values."""
    ours, theirs = _deciding(a), _deciding(b)
    return {key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]}


def _deciding(c: ModelConfig) -> dict[str, Any]:
    names = (
        *("n_layers", "d_model", "n_heads", "kv_heads", "ffn_width", "rows", "vocab_size"),
        *("block_type", "activation_type", "rope_theta", "rope_full_precision"),
        *("layer_norm_type", "layer_norm_with_affine", "norm_bias", "attention_layer_norm"),
        *("input_emb_norm", "scale_logits", "weight_tying", "mask_token_id", "eos_token_id"),
    )
    values = {name: getattr(c, name) for name in names}
    if "rms" in c.layer_norm_type:
        values["rms_norm_eps"] = c.rms_norm_eps
    return {"rms_norm_eps": None} | values


def _tensors(source: Source) -> Iterator[tuple[str, tuple[Entry, int]]]:
    for entry in source.entries:
        for layer in range(source.config.n_layers if entry.per_layer else 1):
            first, *rest = entry.path
            place = (str(layer),) if entry.per_layer else ()
            yield ".".join((first, *place, *rest)), (entry, layer)


_Side = tuple[Source, Entry, int]


def _compare(
    name: str, one: _Side, other: _Side, pool: ThreadPoolExecutor, told: Callable[[int], None]
) -> Comparison:
    (a, entry, _), (b, entry_b, _) = one, other
    if a.shape(entry) != b.shape(entry_b):
        return Comparison(name, "shape", _described(*one, told), _described(*other, told))
    is_same_type = a.dtype(entry) == b.dtype(entry_b)
    hashes = (hashlib.sha256(), hashlib.sha256())
    differing, largest = 0, 0.0
    for x, y in _aligned(_values(*one), _values(*other)):
        updates = [
            pool.submit(digest.update, array_bytes(values))
            for digest, values in zip(hashes, (x, y), strict=True)
        ]
        if not (is_same_type and np.array_equal(x.view(np.uint8), y.view(np.uint8))):
            count, difference = _difference(x, y, by_bits=is_same_type)
            differing += count
            largest = float(np.maximum(largest, difference))  # NaN wins
        for update in updates:
            update.result()
        told(x.nbytes + y.nbytes)
    found = [
        Tensor(_stored_shape(source, entry), source.dtype(entry).name, digest.hexdigest())
        for (source, entry, _), digest in zip((one, other), hashes, strict=True)
    ]
    status: Status = "equal" if is_same_type and not differing else "values"
    if not is_same_type:
        status = "dtype"
    gap = largest if math.isfinite(largest) else None
    return Comparison(name, status, found[0], found[1], differing, gap)


def _difference(x: np.ndarray, y: np.ndarray, *, by_bits: bool) -> tuple[int, float]:
    """Returns how many values differ, and the largest difference (NaN: not a number)."""
    wide_x, wide_y = x.astype(np.float32), y.astype(np.float32)
    both = np.isnan(wide_x) & np.isnan(wide_y)
    if by_bits:
        kind = np.dtype(f"u{x.itemsize}")
        differs = x.view(kind) != y.view(kind)
    else:
        differs = (wide_x != wide_y) & ~both
    with np.errstate(invalid="ignore", over="ignore"):
        # Equal infinities and equal NaNs are no difference, though they cannot be subtracted.
        gap = np.abs(wide_x - wide_y)[differs & ~both & (wide_x != wide_y)]
    return int(differs.sum()), float(gap.max()) if gap.size else 0.0


def _described(source: Source, entry: Entry, layer: int, told: Callable[[int], None]) -> Tensor:
    digest = hashlib.sha256()
    for values in _values(source, entry, layer):
        digest.update(array_bytes(values))
        told(values.nbytes)
    return Tensor(_stored_shape(source, entry), source.dtype(entry).name, digest.hexdigest())


def _stored_shape(source: Source, entry: Entry) -> tuple[int, ...]:
    shape = source.shape(entry)
    return shape[::-1] if entry.transposed else shape


def _values(source: Source, entry: Entry, layer: int) -> Iterator[np.ndarray]:
    """Yields the values in stored order as vectors."""
    for block in stored_blocks(source, entry, layer, source.dtype(entry)):
        yield block.reshape(-1)


def _aligned(
    a: Iterable[np.ndarray], b: Iterable[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cuts two streams of one total length, which come in other portions, into equal pieces."""
    ours, theirs = iter(a), iter(b)
    x = y = np.empty(0)
    for _ in itertools.count():
        x = x if x.size else next(ours, x)
        y = y if y.size else next(theirs, y)
        size = min(x.size, y.size, _PIECE)
        if not size:
            assert x.size == y.size, "the streams have other lengths"
            return
        yield x[:size], y[:size]
        x, y = x[size:], y[size:]
