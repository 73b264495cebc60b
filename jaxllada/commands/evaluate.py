"""Measures the validation bound of a model in nats per token (LLaDA, arXiv:2502.09992v3, eq. 3).

    jaxllada evaluate output/run
    jaxllada evaluate path/to/hf-folder --dataset_args data/books --eval_mc 8 --json

The noise is fixed, so numbers of different models on the same data compare. Two baselines in the
same unit stand beside the bound. A run folder brings its own data settings.
"""

import json
from typing import TYPE_CHECKING, Any

from jaxllada.common.config.evaluate import EvaluateConfig

if TYPE_CHECKING:
    from jaxllada.common.run.evaluation import Evaluation

Config = EvaluateConfig


def run(config: EvaluateConfig) -> None:
    """Measures and prints."""
    from jaxllada.common.run.evaluation import table

    found, limits = measure(config)
    if config.json:
        print(json.dumps(found.to_dict() | limits))
    else:
        print(table(found, limits))


def measure(config: EvaluateConfig) -> "tuple[Evaluation, dict[str, float]]":
    """Returns the evaluation and the baselines, both in nats per token."""
    from jaxllada.common.run.evaluation import baselines
    from jaxllada.common.run.verbs import evaluated

    origin, tokenizer, settings, rows = evaluated(config)
    import jax
    from flax import nnx

    from jaxllada.convert import load
    from jaxllada.sharding import make_mesh, shardings
    from jaxllada.train.compiled import keep_compiled_programs
    from jaxllada.train.inputs import make_validation
    from jaxllada.train.start import compute_config

    keep_compiled_programs()
    mesh = make_mesh()
    step = None if config.step < 0 else config.step
    assert origin.folder is not None
    compute, adapter = compute_config(settings), config.adapter or None
    model = load(origin.folder, step=step, compute=compute, adapter=adapter)
    graphdef, state = nnx.split(model, nnx.Param)
    params: Any = nnx.to_pure_dict(state)
    params = jax.tree.map(jax.device_put, params, shardings(mesh, params))
    evaluate = make_validation(settings, graphdef, model.config, rows["test"], mesh, tokenizer)
    limits = baselines(rows["train"], rows["test"], model.config, settings.eval_max_rows)
    return evaluate(params), limits
