"""Predicts the memory of a training run before it starts, and how to cut it for the devices.

    jaxllada plan configs/pretrain/llada-8b.yaml --devices 8 --memory 80
    jaxllada plan configs/pretrain/llada-8b.yaml --devices 8 --memory 80 --compile

Prints the peak of a device by term, the largest micro-batch, the layouts that fit and the line to
launch. Needs no accelerator. Exit code 1 when no layout fits. Most keys are those of `pretrain`;
the last ones are the plan's own.
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jaxllada.common.plan.report import as_json, command, text
from jaxllada.common.plan.verb import GIB, Plan, PlanConfig, make_plan
from jaxllada.common.plan.xla import keeps_scores, xla_footprint

if TYPE_CHECKING:
    from jaxllada.train.footprint import CompiledMemory


@dataclass(frozen=True, kw_only=True)
class Config(PlanConfig):
    accelerator: Literal["gpu", "tpu", "cpu"] = "gpu"
    """What XLA compiles for. The formulas of cpu and tpu were compared with compiled programs; gpu
    takes those of tpu, with scores kept out of memory where cuDNN's attention runs."""
    compile: bool = False
    """Also compile the configured step for this many devices (virtual CPU devices where there are
    not so many) and print XLA's own figure; takes seconds to a minute and no device memory."""


def run(config: Config) -> int:
    """Prints the plan; returns 1 when nothing fits."""
    formula = "cpu" if config.accelerator == "cpu" else "tpu"
    plan = make_plan(
        config,
        lambda setup: xla_footprint(setup, formula),
        adapt=lambda setup: setup.replace(
            scores_exist=keeps_scores(setup, config.attn_implementation, config.accelerator)
        ),
        allows=lambda setup: setup.model.d_model % setup.fsdp == 0,
    )
    notes = []
    if config.accelerator == "gpu":
        notes.append(
            "XLA takes 75 % of a GPU unless told otherwise: XLA_PYTHON_CLIENT_MEM_FRACTION=.95"
        )
    if config.compile:
        notes.append(_compiled(config, plan))
    print((as_json if config.json else text)(plan, _launch, notes))
    return 0 if plan.found else 1


def _launch(plan: Plan, arguments: list[str]) -> str:
    """One process a machine; it drives all devices of it."""
    nodes = -(-plan.config.devices // plan.config.devices_per_node)
    words = ["jaxllada", "pretrain", *arguments]
    if nodes > 1 and plan.config.num_processes == 1:
        words += ["--coordinator_address", "HOST:1234", "--num_processes", str(nodes)]
        return command(words) + " --process_id 0   # and so on, on each machine"
    return command(words)


def _compiled(config: Config, plan: Plan) -> str:
    """XLA's own figure of the configured step."""
    if plan.footprint is None:
        return f"not compiled: {plan.mismatch}"
    import jax

    from jaxllada.train.footprint import compiled_memory

    mesh = {"mesh_data": plan.setup.data, "random_length_ratio": config.random_length_ratio}
    settings = dataclasses.replace(config, **mesh)
    devices = _devices(config.devices)
    found: CompiledMemory = compiled_memory(settings, plan.model, devices)
    kind = devices[0].platform if devices else jax.default_backend()
    share = plan.footprint.total / found.total - 1
    return (
        f"compiled for {config.devices} x {kind}: {found.total / GIB:.2f} GiB a device "
        f"({found.arguments / GIB:.2f} arguments, {found.temporaries / GIB:.2f} temporaries); "
        f"the prediction differs by {100 * share:+.1f} %"
    )


def _devices(count: int) -> list:
    """Devices to compile for: those here, or as many virtual ones of the CPU."""
    import jax

    if count > 1:  # before anything asks for a device
        jax.config.update("jax_num_cpu_devices", count)
    here = jax.devices()
    return (here if len(here) >= count else jax.devices("cpu"))[:count]
