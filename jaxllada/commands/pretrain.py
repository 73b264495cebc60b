"""Trains a masked-diffusion language model on text (LLaDA, arXiv:2502.09992v3, section 2.2).

    jaxllada pretrain configs/pretrain/quickstart.yaml --learning_rate 1e-3
    jaxllada pretrain output/run/config.yaml --resume auto

Everything lands in output_dir: settings, model config and tokenizer, metrics.jsonl, loss.png,
checkpoints and a text sample for each of them. The folder itself is a model for every other verb.
"""

import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxllada.common.config.train import TrainConfig
from jaxllada.common.errors import UserError
from jaxllada.common.manifest import write_atomically
from jaxllada.common.notices import notice
from jaxllada.common.summary import summary

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxllada.common.tokenizer import Tokenizer
    from jaxllada.train.loop import Outcome, Task
    from jaxllada.train.run_folder import RunFolder

Config = TrainConfig


def run(config: TrainConfig) -> int:
    """Trains; returns 0, 1 after divergence, or 128 + the number of the signal that stopped it."""
    from jaxllada.train.guard import TrainingDivergedError

    try:
        outcome = pretrain(config)
    except TrainingDivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 128 + outcome.signal if outcome.signal else 0


def pretrain(config: TrainConfig) -> "Outcome":
    """The verb as a function. Everything the user can get wrong is found before compiling."""
    _check(config)
    from jaxllada.sharding import check_divides, initialize_distributed, make_mesh
    from jaxllada.train.compiled import keep_compiled_programs
    from jaxllada.train.loop import train
    from jaxllada.train.run_folder import RunFolder
    from jaxllada.train.start import find_model, find_tokenizer, fit_preset

    origin = find_model(config.model_name_or_path)
    tokenizer = find_tokenizer(config.tokenizer_name_or_path, origin)
    model = fit_preset(origin, tokenizer)
    if config.max_length > model.max_sequence_length:
        raise UserError(
            f"max_length={config.max_length}: the model's max_sequence_length is "
            f"{model.max_sequence_length}"
        )
    initialize_distributed(config.coordinator_address, config.num_processes, config.process_id)
    mesh = make_mesh(config.mesh_data, config.mesh_fsdp, config.mesh_tensor)
    check_divides(mesh, model)
    folder = RunFolder(config)
    resume_step = folder.resume_step(config)
    keep_compiled_programs(config.compile_cache_dir)
    task = _task(config, origin, model, tokenizer, mesh)
    outcome = train(config, folder, task, resume_step)
    _conclude(folder)
    return outcome


def _conclude(folder: "RunFolder") -> None:
    """Prints what the run learnt and keeps the table in its folder."""
    import jax

    if jax.process_index() > 0:
        return
    table = summary(folder.metrics)
    if table:
        write_atomically(folder.path / "summary.txt", f"{table}\n".encode())
        print(f"\n{table}")
    print(f"\nrun folder: {folder.path}")


def _check(config: TrainConfig) -> None:
    if not config.dataset_args:
        raise UserError("dataset_args: not set; for example pystdlib, or a file or folder of text")
    if config.lora:
        raise UserError("lora=true: is for fine-tuning; pretrain trains all weights")


def _task(
    config: TrainConfig, origin: Any, model: Any, tokenizer: "Tokenizer", mesh: "Mesh"
) -> "Task":
    """Reads the data and puts together what the loop needs."""
    from jaxllada.common.data.sources import RowOptions, load_rows
    from jaxllada.train.inputs import baselines, make_validation, train_source
    from jaxllada.train.loop import Task
    from jaxllada.train.start import compute_config, split_abstract, starting_params

    compute = compute_config(config)
    graphdef, shapes = split_abstract(model, compute)
    rows = load_rows(config.dataset_args, tokenizer, RowOptions.of(config))
    source = train_source(config, rows["train"], model, mesh)
    test = rows.get("test")
    if test is None and config.eval_strategy != "no":
        notice("dataset_args has no test split: nothing will be evaluated")
    return Task(
        model=model,
        graphdef=graphdef,
        shapes=shapes,
        make_params=lambda: starting_params(origin, model, compute, mesh, config.seed),
        mesh=mesh,
        source=source,
        total_steps=config.total_steps(source.steps_per_epoch),
        tokenizer=tokenizer,
        evaluate=None if test is None else make_validation(config, graphdef, model, test, mesh),
        sample=_text_sampler(config, graphdef, tokenizer) if config.sample_length else None,
        baselines=baselines(rows["train"], test, model, config.eval_max_rows),
    )


def _text_sampler(
    config: TrainConfig, graphdef: Any, tokenizer: "Tokenizer"
) -> Callable[[Any], str] | None:
    """Returns a function from weights to a page of sampled texts, the same noise every time."""
    import jax
    import numpy as np
    from flax import nnx

    from jaxllada.common.config.sampling import SamplingConfig
    from jaxllada.sampling.generate import sample

    if jax.process_count() > 1:
        return None
    length = config.sample_length
    options = SamplingConfig(
        steps=length, gen_length=length, block_length=math.gcd(length, 32), temperature=0.5
    )
    # An empty prompt is the start of a document, which follows the end of another.
    prompts = [
        tokenizer.encode(text) or [tokenizer.eos_id] for text in config.sample_prompts or [""]
    ]

    def page(params: Any) -> str:
        model = nnx.merge(graphdef, params)
        texts = []
        for ids in prompts:
            tokens = sample(model, np.array([ids], np.int32), options, key=jax.random.key(0))
            texts.append(tokenizer.decode(np.asarray(tokens)[0]))
        return "\n\n----\n\n".join(texts) + "\n"

    return page
