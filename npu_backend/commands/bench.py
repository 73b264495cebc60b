"""Measures training or sampling, with random weights of the true shape.

    python -m npu_backend bench sample --model_name_or_path llada-100m --steps 128
    python -m npu_backend bench train --batch_size 2 --length 512 --dtype bfloat16 --json
    python -m npu_backend bench sample --strategies exact dual threshold:0.9 dual+threshold:0.9
    python -m npu_backend bench sample --beside "python -m jaxllada.commands.beside"
    python -m npu_backend bench growth --output growth.png
    python -m npu_backend bench rows --batch_size 16 --gen_length 256
    python -m npu_backend bench likelihood --lengths 192 512 1024 2048

Times end when the device has done its work. Peak memory is that of the process and, on a device,
that of its allocator; the fraction of a matrix product's speed is what the model asks for, divided
by a product measured in the same run.

A program named by --beside takes turns with ours in the same run: it gets one JSON argument (task,
settings and a model folder with the same weights), prints one JSON line when ready, and answers
each line it reads with one JSON line {"seconds": ..., "peak_bytes": ..., "tokens": ...}. With
--strategies the line it reads names one of those that its first line listed:
{"name": "it", "strategies": ["exact", "dual"]} and {"strategy": "dual"}.
"""

from dataclasses import dataclass

from jaxllada.apps import bench
from npu_backend.commands.opening import DeviceKeys


@dataclass(frozen=True, kw_only=True)
class Config(bench.BenchConfig, DeviceKeys):
    pass


def run(config: Config) -> int:
    """Prints what was measured."""
    from npu_backend.commands.bench_cases import Bench

    return bench.run(config, Bench(config.device, config.ops))
