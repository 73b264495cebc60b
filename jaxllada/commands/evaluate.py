"""Measures the validation bound of a model in nats per token (LLaDA, arXiv:2502.09992v3, eq. 3).

    jaxllada evaluate output/run
    jaxllada evaluate path/to/hf-folder --dataset_args data/books --eval_mc 8 --json

The noise is fixed, so numbers of different models on the same data compare. Two baselines in the
same unit stand beside the bound. A run folder brings its own data settings.
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxllada.common.config.train import TrainConfig
from jaxllada.common.errors import UserError

if TYPE_CHECKING:
    from jaxllada.train.evaluate import Evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One evaluation; keys left empty are those of the run, or the defaults of `pretrain`."""

    model_name_or_path: str = dataclasses.field(default="", metadata={"positional": True})
    """Run folder, or folder with config.json and safetensors."""
    step: int = -1
    """Checkpoint of a run folder; -1: the newest sound one."""
    tokenizer_name_or_path: str = ""
    """Tokenizer folder; empty: the one beside the model."""
    dataset_args: str = ""
    """Data with a test split; the train split is counted for the unigram baseline."""
    text_field: str = ""
    """Column that holds the text."""
    max_length: int = 0
    """Tokens per row."""
    load_preprocessed_data: bool = False
    """dataset_args names folders written by `save_to_disk`."""
    num_proc: int = 1
    """Processes that tokenise."""
    eval_mc: int = 4
    """Noise draws per row."""
    eval_max_rows: int = 0
    """Validation rows used; 0: all."""
    per_device_eval_batch_size: int = 8
    """Rows per device."""
    seed: int = -1
    """Seed of the noise; -1: that of the run."""
    bf16: bool = False
    """Compute in bfloat16."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def __post_init__(self) -> None:
        if not self.model_name_or_path:
            raise UserError("no model given: expected jaxllada evaluate MODEL_FOLDER")


def run(config: Config) -> None:
    """Measures and prints."""
    found, baselines = measure(config)
    if config.json:
        print(json.dumps(found.to_dict() | baselines))
    else:
        print(table(found, baselines))


def measure(config: Config) -> "tuple[Evaluation, dict[str, float]]":
    """Returns the evaluation and the baselines, both in nats per token."""
    from flax import nnx

    from jaxllada.common.data.sources import RowOptions, load_rows
    from jaxllada.convert import load
    from jaxllada.sharding import make_mesh, shardings
    from jaxllada.train.compiled import keep_compiled_programs
    from jaxllada.train.inputs import baselines, make_validation
    from jaxllada.train.start import compute_config, find_model, find_tokenizer

    origin = find_model(config.model_name_or_path)
    if not origin.is_trained or origin.folder is None:
        raise UserError(f"model_name_or_path={config.model_name_or_path}: has no weights")
    settings = merged(config, origin.folder)
    tokenizer = find_tokenizer(settings.tokenizer_name_or_path, origin)
    tokenizer.agree_with(origin.config)
    if settings.max_length > origin.config.max_sequence_length:
        raise UserError(
            f"max_length={settings.max_length}: the model's max_sequence_length is "
            f"{origin.config.max_sequence_length}"
        )
    rows = load_rows(settings.dataset_args, tokenizer, RowOptions.of(settings))
    if "test" not in rows:
        raise UserError(f"dataset_args={settings.dataset_args!r}: has no test split")
    keep_compiled_programs()
    mesh = make_mesh()
    step = None if config.step < 0 else config.step
    model = load(origin.folder, step=step, compute=compute_config(settings))
    graphdef, state = nnx.split(model, nnx.Param)
    params: Any = nnx.to_pure_dict(state)
    import jax

    params = jax.tree.map(jax.device_put, params, shardings(mesh, params))
    evaluate = make_validation(settings, graphdef, model.config, rows["test"], mesh)
    limits = baselines(rows["train"], rows["test"], model.config, settings.eval_max_rows)
    return evaluate(params), limits


def merged(config: Config, folder: Path) -> TrainConfig:
    """Returns the settings of the run in `folder`, if it is one, with what `config` sets."""
    from jaxllada.common.config.load import load_file

    path = folder / "config.yaml"
    base = load_file(TrainConfig, path) if path.is_file() else TrainConfig()
    changes = {
        "eval_mc": config.eval_mc,
        "eval_max_rows": config.eval_max_rows,
        "per_device_eval_batch_size": config.per_device_eval_batch_size,
        "num_proc": config.num_proc,
        "tokenizer_name_or_path": config.tokenizer_name_or_path,
        "bf16": config.bf16,
        "streaming": False,
    }
    for key in ("dataset_args", "text_field", "max_length"):
        if getattr(config, key):
            changes[key] = getattr(config, key)
    if config.load_preprocessed_data:
        changes["load_preprocessed_data"] = True
    if config.seed >= 0:
        changes["seed"] = config.seed
    settings = dataclasses.replace(base, **changes)
    if not settings.dataset_args:
        raise UserError("dataset_args: not set, and the model folder is not a run that knows it")
    return settings


def table(found: "Evaluation", baselines: dict[str, float]) -> str:
    """Lays the numbers out for a terminal."""
    names = {"uniform_bound": "uniform guess, ln V", "unigram_bound": "token frequencies"}
    lines = [
        f"{'validation bound':<22}{found.bound:8.4f} +- {found.standard_error:.4f} nats/token",
        *(f"{names[key]:<22}{value:8.4f}" for key, value in baselines.items()),
        f"{'masked tokens right':<22}{100 * found.accuracy:8.2f} %",
        f"{found.rows} rows, {found.tokens} tokens, {found.draws} noise draws per row",
        "",
        f"{'mask rate':<12}{'nats/token':>12}{'right':>10}",
    ]
    for b, (nll, accuracy) in enumerate(
        zip(found.nll_by_rate, found.accuracy_by_rate, strict=True)
    ):
        share = f"{b / 10:.1f}-{(b + 1) / 10:.1f}"
        if nll is None or accuracy is None:
            lines.append(f"{share:<12}{'-':>12}{'-':>10}")
        else:
            lines.append(f"{share:<12}{nll:12.4f}{100 * accuracy:8.2f} %")
    return "\n".join(lines)
