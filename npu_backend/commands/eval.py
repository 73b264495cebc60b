"""Evaluates a model on tasks of lm_eval, by published protocols or by one's own settings.

    python -m npu_backend eval LLaDA-8B-Instruct --recipe gsm8k@llada-instruct --output DIR
    python -m npu_backend eval LLaDA-8B-Base --recipe llada-base --output DIR
    python -m npu_backend eval MODEL --tasks gsm8k --preset mine.yaml --limit 100 --output DIR
    ./launch/npu_eval.sh MODEL --recipe llada-base --output DIR

`--preset` takes published settings and what `tune` writes. The same command again goes on where it
was cut. Tables go to stdout; results.json, results.md and samples to the output folder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxllada.apps import eval as app
from jaxllada.apps.evaluation.ranks import part_of, tell_of_idle
from jaxllada.common.engine import Engine
from npu_backend.commands.launched import launched
from npu_backend.commands.opening import DeviceKeys, open_engine


@dataclass(frozen=True, kw_only=True)
class Config(DeviceKeys, app.EvalOptions):
    pass


def run(config: Config) -> int:
    """Answers what is open, scores and prints."""
    backend = app.Backend("npu_backend", opened, hardware)
    return launched(lambda _: app.run(config, backend), ends_together=False)


def opened(config: Config, folder: Path) -> Engine:
    """Opens the model on this process's device."""
    from npu_backend.device import count_devices, find_device

    part, count = part_of(config.part), count_devices(find_device(config.device))
    tell_of_idle(part, count, "./launch/npu_eval.sh (--device cuda on GPUs)")
    return open_engine(config, folder)


def hardware(config: Any) -> str:
    """The device that answered."""
    from npu_backend.device import device_name, find_device

    return device_name(find_device(config.device))
