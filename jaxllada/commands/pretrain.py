"""Trains a masked-diffusion language model on text (LLaDA, arXiv:2502.09992v3, section 2.2).

    jaxllada pretrain configs/pretrain/quickstart.yaml --learning_rate 1e-3
    jaxllada pretrain output/run/config.yaml --resume auto

Everything lands in output_dir: settings, model config and tokenizer, metrics.jsonl, loss.png,
checkpoints and a text sample for each of them. The folder itself is a model for every other verb.
"""

from typing import TYPE_CHECKING, Any

from jaxllada.common.config.train import TrainConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxllada.common.config.model import ModelConfig
    from jaxllada.common.plan.footprint import Footprint
    from jaxllada.common.plan.setup import Setup
    from jaxllada.common.run.backend import Outcome
    from jaxllada.common.tokenizer import Tokenizer
    from jaxllada.common.weights.peft import AdapterFiles
    from jaxllada.train.loop import Task

Config = TrainConfig


def run(config: TrainConfig) -> int:
    """Trains; returns 0, 1 after divergence, or 128 + the number of the signal that stopped it."""
    from jaxllada.common.run.verbs import exit_code

    return exit_code(lambda: pretrain(config))


def pretrain(config: TrainConfig) -> "Outcome":
    """The verb as a function. Everything the user can get wrong is found before compiling."""
    from jaxllada.common.run.run_folder import RunFolder
    from jaxllada.common.run.verbs import checked, conclude

    origin, tokenizer, model = checked(config)
    import jax

    from jaxllada.common.notices import notice
    from jaxllada.common.run.adapting import settle_adapters
    from jaxllada.orbax_source import open_source
    from jaxllada.sharding import check_divides, initialize_distributed, make_mesh
    from jaxllada.train.checkpoint import Checkpoints
    from jaxllada.train.compiled import keep_compiled_programs
    from jaxllada.train.loop import train

    initialize_distributed(config.coordinator_address, config.num_processes, config.process_id)
    mesh = make_mesh(config.mesh_data, config.mesh_fsdp, config.mesh_tensor)
    check_divides(mesh, model)
    is_main = jax.process_index() == 0
    config, adapter = settle_adapters(config, origin, open_source, is_main=is_main)
    if is_main:
        notice(_planned(config, model, mesh))
    folder = RunFolder(config, Checkpoints)
    resume_step = folder.resume_step(config)
    keep_compiled_programs(config.compile_cache_dir)
    task = _task(config, origin, model, tokenizer, mesh, adapter)
    outcome = train(config, folder, task, resume_step)
    if jax.process_index() == 0:
        conclude(folder)
    return outcome


def _planned(config: TrainConfig, model: "ModelConfig", mesh: "Mesh") -> str:
    """The memory this run is going to take, in one line."""
    from jaxllada.common.plan.line import memory_line
    from jaxllada.common.plan.xla import keeps_scores, xla_footprint

    kind = mesh.devices.flat[0].platform
    compiler, kernel = "cpu" if kind == "cpu" else "tpu", config.attn_implementation

    def predict(setup: "Setup") -> "Footprint":
        exist = keeps_scores(setup, kernel, kind)
        return xla_footprint(setup.replace(scores_exist=exist), compiler)

    return memory_line(config, model, mesh.size, predict)


def _task(
    config: TrainConfig,
    origin: Any,
    model: Any,
    tokenizer: "Tokenizer",
    mesh: "Mesh",
    adapter: "AdapterFiles | None" = None,
) -> "Task":
    """Reads the data and puts together what the loop needs."""
    from jaxllada.common.run.evaluation import baselines
    from jaxllada.common.run.samples import probes_of
    from jaxllada.common.run.verbs import rows_of
    from jaxllada.train.inputs import make_validation, train_source
    from jaxllada.train.loop import Task
    from jaxllada.train.samples import make_sampler
    from jaxllada.train.start import compute_config, split_abstract, starting_params

    compute, lora = compute_config(config), None if adapter is None else adapter.lora
    graphdef, shapes = split_abstract(model, compute, lora)
    rows = rows_of(config, tokenizer)
    source = train_source(config, rows["train"], model, mesh)
    test = rows.get("test")
    return Task(
        model=model,
        graphdef=graphdef,
        shapes=shapes,
        make_params=lambda: starting_params(origin, model, compute, mesh, config.seed, lora),
        mesh=mesh,
        source=source,
        total_steps=config.total_steps(source.steps_per_epoch),
        tokenizer=tokenizer,
        evaluate=None
        if test is None
        else make_validation(config, graphdef, model, test, mesh, tokenizer),
        sample=make_sampler(config, graphdef, tokenizer, probes_of(config, tokenizer, rows)),
        adapter=adapter,
        baselines=baselines(rows["train"], test, model, config.eval_max_rows),
    )
