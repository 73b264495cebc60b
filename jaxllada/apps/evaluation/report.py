"""The record of one evaluation run: what was measured, by which protocol, at what cost, on what.

A run is one recipe, or the tasks of one call of `eval`. Its record holds everything that moves a
score: task versions, prompts (as a hash), settings, weights, types, libraries, hardware and seeds.
Scores are kept as lm_eval gives them.
"""

import hashlib
import importlib.metadata
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxllada.common.config.recipes import Recipe
from jaxllada.common.version import __version__
from jaxllada.common.weights.header import DTYPES, read_header

Run = dict[str, Any]
"""The record of one run, as JSON."""
Results = Mapping[str, Any]
"""What `lm_eval.evaluator.evaluate` returns."""
Samples = Mapping[str, Sequence[Mapping[str, Any]]]
"""Its `samples`: for every task a row of each document and filter."""

LIBRARIES = (
    "lm_eval", "transformers", "tokenizers", "datasets", "numpy", "jax", "jaxlib", "flax", "torch",
    "torch_npu",
)  # fmt: skip
_NOT_SHARES = {"perplexity", "byte", "bleu", "chrf", "ter", "nats", "loglikelihood"}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the answers of a run took, those included that were kept from an earlier run."""

    requests: int
    """Prompts to answer and options to score."""
    kept: int = 0
    """Of these, answered by an earlier run or by another process."""
    answers: int = 0
    """Of the requests, those that were sampled."""
    model_calls: int = 0
    """Calls of the model while sampling, of whole batches; both passes of guidance are one."""
    answer_calls: int = 0
    """NFE: the same, counted for every answer of a batch, as published with a batch of one."""
    canvases: int = 0
    """Masked copies shown to the model for likelihoods."""
    response_tokens: int = 0
    """Tokens of sampled answers before their end or stop text, the prompt not among them."""
    sampling_seconds: float = 0.0
    """Seconds of the sampler, compilation included, summed over processes."""
    scoring_seconds: float = 0.0
    """Seconds of the likelihoods, summed over processes."""
    wall_seconds: float = 0.0
    """Seconds that this process answered and scored."""

    @property
    def tokens_per_call(self) -> float | None:
        """Response tokens for each NFE; None where nothing was sampled."""
        return self.response_tokens / self.answer_calls if self.answer_calls else None

    @property
    def tokens_per_second(self) -> float | None:
        """Response tokens for each second of one process; None where nothing was sampled."""
        if not self.response_tokens or self.sampling_seconds <= 0:
            return None
        return self.response_tokens / self.sampling_seconds


def environment(*, backend: str, hardware: str, dtype: str) -> dict[str, Any]:
    """What the run stood on. `backend` is jaxllada or npu_backend, `dtype` that of the weights."""
    versions = {"jaxllada": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "backend": backend,
        "hardware": hardware,
        "dtype": dtype,
        "system": platform.platform(),
        "versions": versions,
    }


def stored_type(folder: Path) -> str:
    """The type of most weights in a model folder's safetensors files; `as stored` without any."""
    sizes: dict[str, int] = {}
    for path in folder.glob("*.safetensors"):
        for tensor in read_header(path).values():
            name = DTYPES[tensor.kind].name if tensor.kind in DTYPES else tensor.kind
            sizes[name] = sizes.get(name, 0) + tensor.end - tensor.begin
    return max(sizes, key=lambda name: sizes[name], default="as stored")


def record(
    results: Results,
    samples: Samples,
    *,
    name: str,
    tasks: Sequence[str],
    recipe: Recipe | None,
    changed: Sequence[str] = (),
    protocol: Mapping[str, Any],
    cost: Cost,
    environment: Mapping[str, Any],
) -> Run:
    """Builds the record of a run from what lm_eval returns.

    `tasks` are those that were asked for: names of tasks, groups and tags, or files. `changed` are
    the keys of the recipe that the user overrode. `protocol` is everything else that was set:
    `model` and the fingerprint of its weights, `sampling` of every task and `likelihood` in full,
    template, limit, seeds.
    """
    counts = results.get("n-samples", {})
    entries = {}
    for task, values in results["results"].items():
        leaves = leaves_of(task, results)
        entries[task] = {
            "metrics": _metrics(values, results.get("higher_is_better", {}).get(task, {})),
            "version": results.get("versions", {}).get(task),
            "num_fewshot": _agreed([results.get("n-shot", {}).get(leaf) for leaf in leaves]),
            "documents": sum(counts.get(leaf, {}).get("effective", 0) for leaf in leaves),
            "all_documents": sum(counts.get(leaf, {}).get("original", 0) for leaf in leaves),
            "prompts": _digest([_prompts(samples.get(leaf, ())) for leaf in leaves]),
        }
        if leaves != [task]:
            entries[task]["subtasks"] = leaves
    rates = {name: getattr(cost, name) for name in ("tokens_per_call", "tokens_per_second")}
    return {
        "name": name,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "tasks": list(tasks),
        "shown": _shown(tasks, results),
        "published": _published(recipe, changed),
        "results": entries,
        "protocol": dict(protocol),
        "cost": asdict(cost) | rates,
        "environment": dict(environment),
    }


def _published(recipe: Recipe | None, changed: Sequence[str]) -> dict[str, Any] | None:
    if recipe is None:
        return None
    keys = ("metric", "harness", "model", "source", "note")
    about = {key: getattr(recipe, key) for key in keys}
    return {"recipe": recipe.name, "score": recipe.published, **about, "changed": sorted(changed)}


def _shown(tasks: Sequence[str], results: Results) -> list[str]:
    """The tasks that were asked for by name; with files or tags, all that are part of no group."""
    if all(name in results["results"] for name in tasks):
        return [name for name in results["results"] if name in tasks]
    below = {one for several in results.get("group_subtasks", {}).values() for one in several}
    return [name for name in results["results"] if name in tasks or name not in below]


def leaves_of(task: str, results: Results) -> list[str]:
    """The tasks with documents below a task or group, in order."""
    children = results.get("group_subtasks", {}).get(task) or []
    if not children:
        return [task]
    return list(dict.fromkeys(leaf for child in children for leaf in leaves_of(child, results)))


def _metrics(values: Mapping[str, Any], higher: Mapping[str, Any]) -> dict[str, Any]:
    """`acc,none` and `acc_stderr,none` as one entry each; finite numbers only."""
    found = {}
    for key, value in values.items():
        metric, _, rule = key.partition(",")
        if not rule or metric.endswith("_stderr") or not _is_number(value):
            continue
        error = values.get(f"{metric}_stderr,{rule}", math.nan)
        found[key] = {
            "value": float(value),
            "stderr": float(error) if _is_number(error) else None,
            "is_share": _is_share(metric, value, higher.get(metric)),
        }
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_share(metric: str, value: float, higher_is_better: Any) -> bool:
    is_other = bool(_NOT_SHARES & set(metric.split("_")))
    return higher_is_better is not False and 0 <= value <= 1 and not is_other


def _agreed(values: Sequence[Any]) -> Any:
    """The common value, or None."""
    return values[0] if values and all(value == values[0] for value in values) else None


def _prompts(rows: Sequence[Mapping[str, Any]]) -> str:
    """One hash of all that the model was asked in a task, in any order of documents."""
    asked = {(row["doc_id"], repr(row["arguments"])) for row in rows}
    return _digest([f"{number} {text}" for number, text in sorted(asked, key=repr)])


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
