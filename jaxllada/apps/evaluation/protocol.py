"""What is said of the settings of an evaluation: all of them, those changed, those without use."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, fields
from typing import Any

from jaxllada.apps.evaluation.asked_texts import Texts
from jaxllada.apps.evaluation.estimate_keys import EstimateKeys
from jaxllada.apps.evaluation.job import Job, Loaded
from jaxllada.apps.evaluation.keys import EvalOptions
from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.config.recipes import Recipe


def changes(job: Job, recipe: Recipe, options: EvalOptions) -> tuple[str, ...]:
    """The settings of a job that are not the recipe's, by their keys."""
    changed = set()
    if recipe.sampling:
        ours, theirs = job.manner.sampling, recipe.sampling
        changed |= {k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)}
    if recipe.likelihood:
        keys = [key.name for key in fields(LikelihoodConfig)]
        plain = EvalOptions(model_name_or_path=".", recipe=options.recipe, seed=options.seed)
        estimate, add_bos = plain.estimate(recipe.likelihood, plain.shared())
        ours = asdict(job.manner.likelihood)
        changed |= {key for key in keys if ours[key] != getattr(estimate, key)}
        changed |= {"add_bos"} if add_bos != job.manner.add_bos else set()
        changed -= {"seed", "rows_per_call"}
    for key in ("num_fewshot", "chat"):
        changed |= {key} if getattr(job, key) != getattr(recipe, key) else set()
    if job.fewshot_as_multiturn != (recipe.fewshot_as_multiturn and job.chat):
        changed.add("fewshot_as_multiturn")
    changed |= {"system_instruction"} if options.system_instruction else set()
    return tuple(sorted(changed))


def unused(options: EvalOptions, kinds: Collection[str]) -> str:
    """Says which of the keys that are given no task asks for; empty if there are none."""
    told = []
    if "generate_until" not in kinds:
        shared = ("cfg_scale", "attention", *(("block_length",) if options.attention else ()))
        told += [key for key in options.given() if key not in shared]
    if not set(kinds) - {"generate_until"}:
        told += [k.name for k in fields(EstimateKeys) if getattr(options, k.name) is not None]
    what = "samples" if "generate_until" not in kinds else "compares options"
    return f"not used, as no task {what}: {', '.join(told)}" if told else ""


def protocol_of(loaded: Loaded, options: EvalOptions) -> Mapping[str, Any]:
    """Everything that was set, for the record: defaults written out."""
    job = loaded.job
    found: dict[str, Any] = {
        "chat": job.chat,
        "fewshot_as_multiturn": job.fewshot_as_multiturn,
        "system_instruction": options.system_instruction,
        "num_fewshot": job.num_fewshot,
        "limit": options.limit,
        "seed": options.seed,
        "fewshot_seed": options.fewshot_seed,
        "too_long": options.too_long,
    }
    texts = loaded.works.get("generate_until")
    if isinstance(texts, Texts):
        found["batch_size"] = options.batch_size
        found["sampling"] = {
            name: {**asdict(config), "until": list(until)}
            for name, (config, until) in texts.settings.items()
        }
    if loaded.works.keys() - {"generate_until"}:
        found["likelihood"] = {**asdict(job.manner.likelihood), "add_bos": job.manner.add_bos}
    return found
