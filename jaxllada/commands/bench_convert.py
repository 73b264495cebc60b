"""`jaxllada bench convert`: both directions beside `cp -r` of the same bytes on the same disk.

Random weights of a model's shapes are written once. Then, in every round, `cp` and the conversion
take turns in each direction; all of them are timed until every byte is on the disk (fsync). A
conversion runs in a process of its own, so that its memory is its own; what the interpreter and
its imports take is subtracted. Times leave out starting the process and importing.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.opening import read_config
from jaxllada.common.config.presets import PRESETS, preset
from jaxllada.common.durable import sync
from jaxllada.common.errors import UserError
from jaxllada.common.memory import keep_freed_memory
from jaxllada.common.notices import notice
from jaxllada.common.sizes import parse_bytes, show_bytes
from jaxllada.common.timing import forget_peak_memory, peak_memory, speed_ratio, take_turns
from jaxllada.common.weights.layouts import LLADA
from jaxllada.common.weights.shards import Tensor, plan_shards, write_shards

_DTYPE = np.dtype(ml_dtypes.bfloat16)
_ITEMS = 1 << 25  # 64 MB
_SHARD_BYTES = 5 * 10**9
# Beyond the interpreter and its imports: this and twice the largest stored tensor.
_ALLOWANCE = 512 << 20


def bench_convert(config: Any) -> dict[str, Any]:
    """Measures both directions and returns the report."""
    model = _cut(config.model_name_or_path, parse_bytes(config.size, "size"))
    sizes = [int(np.prod(tensor.shape)) * _DTYPE.itemsize for tensor in LLADA.tensors(model)]
    place = Path(config.folder) if config.folder else None
    if place is not None and not place.is_dir():
        raise UserError(f"folder={config.folder}: expected a folder that exists")
    with tempfile.TemporaryDirectory(prefix="bench-convert.", dir=place) as name:
        folder = Path(name)
        free = shutil.disk_usage(folder).free
        if free < 3.1 * sum(sizes):
            raise UserError(
                f"folder={folder}: {free / 1e9:.1f} GB free, three times {sum(sizes) / 1e9:.1f} GB"
                " are needed"
            )
        notice(f"writing {sum(sizes) / 1e9:.2f} GB of random weights below {folder}")
        _write_random(folder / "hf", model, config.seed)
        _convert("hf-to-flax", folder / "hf", folder / "flax")
        report: dict[str, Any] = {
            "task": "convert",
            "model": config.model_name_or_path,
            "layers": model.n_layers,
            "bytes": sum(sizes),
            "largest_tensor_bytes": max(sizes),
            "peak_allowed_bytes": 2 * max(sizes) + _ALLOWANCE,
        }
        for direction, source in (("hf-to-flax", "hf"), ("flax-to-hf", "flax")):
            report |= _measure(config, direction, folder / source, folder / "out", sum(sizes))
        report["round_trip_is_bit_exact"] = _same_tensors(folder / "hf", folder / "out")
    return report


def _measure(config: Any, direction: str, source: Path, target: Path, size: int) -> dict[str, Any]:
    def fresh(call: Callable[[], dict[str, float]]) -> Callable[[], dict[str, float]]:
        def begin() -> dict[str, float]:
            shutil.rmtree(target, ignore_errors=True)
            os.sync()
            return call()

        return begin

    # cp comes first in every round, so that the last result is ours.
    times = take_turns(
        {
            "cp": fresh(lambda: _copy(source, target)),
            "jaxllada": fresh(lambda: _convert(direction, source, target)),
        },
        rounds=config.rounds,
        warmup=0,
    )
    ours, cp = times["jaxllada"], times["cp"]
    key = direction.replace("-", "_")
    return {
        f"{key}_seconds_median": ours.median,
        f"{key}_gigabytes_per_second": size / ours.median / 1e9,
        f"{key}_cp_seconds_median": cp.median,
        f"{key}_cp_seconds_without_fsync": cp.result["without_fsync"],
        f"{key}_times_the_speed_of_cp": speed_ratio(ours, cp),
        f"{key}_peak_bytes": ours.result["peak_bytes"],
    }


def _copy(source: Path, target: Path) -> dict[str, float]:
    begun = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    copied = time.perf_counter()
    for path in (*target.rglob("*"), target):
        sync(path)
    return {"seconds": time.perf_counter() - begun, "without_fsync": copied - begun}


def _convert(direction: str, source: Path, target: Path) -> dict[str, float]:
    program = "import sys; from jaxllada.commands.bench_convert import work; work(*sys.argv[1:])"
    command = [sys.executable, "-c", program, direction, source, target]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def work(direction: str, source: str, target: str) -> None:
    """Converts once in this process and prints one line of JSON."""
    from jaxllada import orbax_source, stream  # noqa: F401
    from jaxllada.commands import convert
    from jaxllada.common.weights import export  # noqa: F401

    keep_freed_memory()
    settings = convert.Config(direction=direction, source=source, target=target)  # pyright: ignore
    forget_peak_memory()
    before = peak_memory()
    begun = time.perf_counter()
    convert.run(settings)
    seconds = time.perf_counter() - begun
    print(json.dumps({"seconds": seconds, "peak_bytes": peak_memory() - before}))


def _cut(name: str, size: int) -> ModelConfig:
    """The shape of that name with so many layers that its bfloat16 weights come closest."""
    model = preset(name) if name in PRESETS else read_config(name)

    def nbytes(layers: int) -> int:
        cut = dataclasses.replace(model, n_layers=layers)
        return sum(int(np.prod(tensor.shape)) for tensor in LLADA.tensors(cut)) * _DTYPE.itemsize

    per_layer = nbytes(2) - nbytes(1)
    layers = round((size - nbytes(1)) / per_layer) + 1
    if layers > model.n_layers:
        raise UserError(f"size={show_bytes(size)}: {name} has {show_bytes(nbytes(model.n_layers))}")
    return dataclasses.replace(model, n_layers=max(1, layers), block_group_size=1)


def _write_random(folder: Path, model: ModelConfig, seed: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    numbers = (rng.standard_normal(_ITEMS, np.float32) * 0.02).astype(_DTYPE)

    def read(count: int, start: int) -> Iterator[np.ndarray]:
        """Another cut of the same numbers for every tensor."""
        while count:
            block = numbers[start : start + count]
            yield block
            count, start = count - len(block), 0

    tensors = []
    for place, stored in enumerate(LLADA.tensors(model)):
        count = int(np.prod(stored.shape))
        start = int(rng.integers(_ITEMS))

        def draw(count: int = count, start: int = start) -> Iterator[np.ndarray]:
            return read(count, start)

        tensors.append(Tensor(stored.name, _DTYPE, stored.shape, draw, place))
    write_shards(folder, plan_shards(tensors, _SHARD_BYTES))
    model.save(folder)


def _same_tensors(a: Path, b: Path) -> bool:
    """Whether two folders hold the same bytes under the same names, wherever they lie."""
    from jaxllada.common.weights.index import WeightFolder

    first, second = WeightFolder(a), WeightFolder(b)
    return set(first.names) == set(second.names) and all(
        np.array_equal(first.read(name).view(np.uint8), second.read(name).view(np.uint8))
        for name in first.names
    )
