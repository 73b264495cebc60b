"""Trains a masked-diffusion language model on text (LLaDA, arXiv:2502.09992v3, section 2.2).

    python -m npu_backend pretrain configs/pretrain/quickstart.yaml --device cpu
    ./launch/npu_train.sh configs/pretrain/llada-8b.yaml --mesh_fsdp 8

The same settings, data, noise and files as `jaxllada pretrain`. Every checkpoint is a model folder
for both packages, with the training state inside it.
"""

import dataclasses
import os
from typing import TYPE_CHECKING, Any, Literal

from jaxllada.common.config.train import TrainConfig
from npu_backend.commands.launched import Launch, launched

if TYPE_CHECKING:
    from jaxllada.common.run.backend import Outcome
    from jaxllada.common.tokenizer import Tokenizer
    from jaxllada.common.weights.peft import AdapterFiles
    from npu_backend.sharding import Mesh
    from npu_backend.train.loop import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    """One training run, and the devices it runs on."""

    device: Literal["auto", "npu", "cuda", "cpu"] = "auto"
    """Where to train: auto takes the first of npu, cuda and cpu that is there."""
    ops: Literal["auto", "fused", "plain"] = "auto"
    """Kernels on an NPU: fused, plain torch, or (auto) fused where a probe finds them exact."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("mesh_tensor", self.mesh_tensor == 1, "1: torch splits with mesh_fsdp")
        own = ("", "none")
        self.require("compile_cache_dir", self.compile_cache_dir in own, "none: nothing compiles")

    def shared(self) -> TrainConfig:
        """The settings without those of this machine: what a run folder keeps."""
        names = [field.name for field in dataclasses.fields(TrainConfig)]
        return TrainConfig(**{name: getattr(self, name) for name in names})


def run(config: Config) -> int:
    """Trains; returns 0, 1 after divergence, or 128 + the number of the signal that stopped it."""
    from jaxllada.common.run.verbs import exit_code

    return launched(lambda launch: exit_code(lambda: pretrain(config, launch)), ends_together=True)


def pretrain(config: Config, launch: Launch | None = None) -> "Outcome":
    """The verb as a function. What the user can get wrong is found before anything is written."""
    launch = launch or Launch()
    from jaxllada.common.run.run_folder import RunFolder
    from jaxllada.common.run.verbs import checked, conclude

    origin, tokenizer, model = checked(config)
    import torch

    from jaxllada.common.notices import notice
    from jaxllada.common.plan.line import memory_line
    from jaxllada.common.run.adapting import settle_adapters
    from jaxllada.common.weights.opening import open_folder
    from npu_backend.commands.plan import predictor
    from npu_backend.sharding import initialize_distributed, largest, make_mesh
    from npu_backend.train.checkpoint import Checkpoints
    from npu_backend.train.loop import train

    if os.environ.get("JAXLLADA_DETERMINISTIC") == "1":
        torch.use_deterministic_algorithms(True)
    device = initialize_distributed(
        config.device, config.coordinator_address, config.num_processes, config.process_id
    )
    mesh = make_mesh(device, config.mesh_data, config.mesh_fsdp)
    # All processes have to agree: on other machines none may have crashed.
    if largest(int(launch.has_begun)):
        config = dataclasses.replace(config, resume="auto", overwrite_output_dir=False)
    config, adapter = settle_adapters(config, origin, open_folder, is_main=mesh.is_main)
    if mesh.is_main:
        is_npu = mesh.device.type == "npu"
        predict = predictor(is_npu and config.ops != "plain", has_hccl=is_npu)
        notice(memory_line(config, model, mesh.size, predict))
    settings = config.shared()
    folder = RunFolder(settings, Checkpoints)
    resume_step = folder.resume_step(settings)
    task = _task(config, origin, model, tokenizer, mesh, adapter)
    folder.checkpoints.place(mesh, model, tokenizer)  # pyright: ignore[reportAttributeAccessIssue]
    outcome = train(settings, folder, dataclasses.replace(task, on_begin=launch.begin), resume_step)
    if mesh.is_main:
        conclude(folder)
    return outcome


def _task(
    config: Config,
    origin: Any,
    model: Any,
    tokenizer: "Tokenizer",
    mesh: "Mesh",
    adapter: "AdapterFiles | None" = None,
) -> "Task":
    """Reads the data and puts together what the loop needs."""
    from jaxllada.common.config.compute import compute_config
    from jaxllada.common.run.evaluation import baselines
    from jaxllada.common.run.samples import probes_of
    from jaxllada.common.run.verbs import rows_of
    from npu_backend.probe import choose_kernels
    from npu_backend.sharding import one_first
    from npu_backend.train.inputs import make_validation, train_source
    from npu_backend.train.loop import Task
    from npu_backend.train.samples import make_sampler
    from npu_backend.train.start import make_network, set_weights

    compute = compute_config(config)
    network, objective = make_network(
        model, compute, mesh, None if adapter is None else adapter.lora
    )
    batch, length = config.per_device_train_batch_size, config.max_length
    kernels = choose_kernels(config.ops, mesh.device, model, compute, batch=batch, length=length)
    network.use(kernels)
    with one_first(mesh):
        rows = rows_of(config, tokenizer)
    source = train_source(config, rows["train"], model, mesh)
    test = rows.get("test")
    return Task(
        model=model,
        network=network,
        objective=objective,
        set_weights=lambda: set_weights(network, origin, mesh, config.seed),
        mesh=mesh,
        source=source,
        total_steps=config.total_steps(source.steps_per_epoch),
        tokenizer=tokenizer,
        measure=None
        if test is None
        else make_validation(config, objective, model, test, mesh, tokenizer),
        write_sample=make_sampler(
            config, network, tokenizer, probes_of(config, tokenizer, rows), mesh
        ),
        fused_optimizer=mesh.device.type != "npu" or kernels.adamw,
        adapter=adapter,
        baselines=baselines(rows["train"], test, model, config.eval_max_rows),
    )
