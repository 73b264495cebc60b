"""Measures training, sampling or converting, with random weights of the true shape.

jaxllada bench sample --model_name_or_path llada-100m --steps 128
jaxllada bench train --batch_size 2 --length 512 --json
jaxllada bench sample --beside "python other_implementation.py"
jaxllada bench sample --beside "python -m npu_backend.commands.beside"
jaxllada bench sample --strategies exact dual threshold:0.9 dual+threshold:0.9
jaxllada bench growth --output growth.png
jaxllada bench rows --batch_size 16 --gen_length 256
jaxllada bench likelihood --lengths 192 512 1024 2048
jaxllada bench convert --size 4GB

`convert` takes turns with `cp -r` of the same bytes, all timed until they are on the disk.

A program named by --beside takes turns with ours in the same run: it gets one JSON argument
(task, settings and a model folder with the same weights), prints one JSON line when ready, and
answers each line it reads with one JSON line {"seconds": ..., "peak_bytes": ..., "tokens": ...}.
With --strategies the line it reads names one of those that its first line listed:
{"name": "it", "strategies": ["exact", "dual"]} and {"strategy": "dual"}.
"""

import json
from dataclasses import dataclass, field, replace
from typing import Literal

from jaxllada.apps import bench
from jaxllada.common.errors import UserError
from jaxllada.common.sizes import parse_bytes


@dataclass(frozen=True, kw_only=True)
class Config(bench.BenchConfig):
    task: Literal["train", "sample", "growth", "rows", "likelihood", "convert"] = field(
        default="sample", metadata={"positional": True}
    )
    """What to measure: one optimiser step, one whole generation, how its time grows with length and
    batch, what rows that are over save by leaving, scoring with and without reuse of prompts, or
    conversions both ways."""
    size: str = ""
    """Converting: bytes of weights, such as 4GB; the model (llada-8b by default) gets so many
    layers. 4GB by default."""
    folder: str = ""
    """Converting: folder on the disk to measure; that of temporary files by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("size", "folder"):
            if getattr(self, key) and self.task != "convert":
                raise UserError(f"{key}={getattr(self, key)}: is only for bench convert")
        if self.beside and self.task == "convert":
            raise UserError(f"beside={self.beside[0]}: convert takes turns with cp")
        if self.size:
            parse_bytes(self.size, "size")


def run(config: Config) -> int:
    """Prints what was measured."""
    if config.task == "convert":
        from jaxllada.commands.bench_convert import bench_convert

        name = config.model_name_or_path or "llada-8b"
        config = replace(config, model_name_or_path=name, size=config.size or "4GB")
        report = bench_convert(config)
        print(json.dumps(report) if config.json else bench.report_table(report))
        return 0
    from jaxllada.commands.bench_cases import Bench

    return bench.run(config, Bench())
