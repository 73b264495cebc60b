"""What an evaluation consists of: for each recipe its tasks, their prompts, and how to answer them.

Everything that can be wrong with tasks, data, prompts and settings is found here, before the model
is read.
"""

import contextlib
import functools
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxllada.apps.evaluation.asked import Manner
from jaxllada.apps.evaluation.asked_texts import Texts, told_settings
from jaxllada.apps.evaluation.checks import check_task
from jaxllada.apps.evaluation.harness import templated, works_of
from jaxllada.apps.evaluation.job import Built, Job, Loaded
from jaxllada.apps.evaluation.keys import EvalOptions
from jaxllada.apps.evaluation.protocol import changes
from jaxllada.apps.tasks.local_tasks import task_dict
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.recipes import Recipe, recipes_of
from jaxllada.common.errors import UserError
from jaxllada.common.notices import notice
from jaxllada.common.tokenizer import Tokenizer


def name_of(tasks: Sequence[str]) -> str:
    """What the run of some tasks is called in results."""
    names = [Path(t).stem if Path(t).suffix in (".yaml", ".yml", ".jsonl") else t for t in tasks]
    return ",".join(names)


def jobs_of(options: EvalOptions) -> list[Job]:
    """The jobs of a command; raises `UserError` for unknown recipes and keys that do not fit."""
    recipes: list[Recipe | None] = []
    if options.recipe:
        recipes += recipes_of(",".join(options.recipe))
    if options.tasks:
        recipes.append(None)
    return [_job(recipe, options) for recipe in recipes]


def _job(recipe: Recipe | None, options: EvalOptions) -> Job:
    name = name_of(options.tasks)
    start = recipe or Recipe(name=name, tasks=options.tasks, likelihood={"mc_num": 128})
    given = options.given()
    base = {} if options.preset else dict(start.sampling)
    estimate, add_bos = options.estimate(start.likelihood if recipe else {}, options.shared())
    chat = start.chat if options.uses_chat is None else options.uses_chat
    turns = start.fewshot_as_multiturn
    if options.fewshot_as_multiturn is not None:
        turns = options.fewshot_as_multiturn
    if turns and not chat and options.fewshot_as_multiturn:
        raise UserError("fewshot_as_multiturn=true needs chat=true: turns need the template")
    manner = Manner(
        sampling=base | given,
        likelihood=estimate,
        add_bos=add_bos,
        keeps_blanks=chat,
        seed=options.seed,
        batch_size=options.batch_size,
        too_long=options.too_long,
    )
    shots = start.num_fewshot if options.num_fewshot is None else options.num_fewshot
    job = Job(
        name=start.name,
        recipe=recipe,
        tasks=start.tasks,
        num_fewshot=shots,
        chat=chat,
        fewshot_as_multiturn=turns and chat,
        manner=manner,
    )
    return job if recipe is None else replace(job, changed=changes(job, recipe, options))


def build(job: Job, options: EvalOptions, tokenizer: Tokenizer) -> Built:
    """Loads the tasks of a job and writes out their prompts; raises `UserError`."""
    with _quiet():
        tasks = task_dict(job.tasks, data=options.data, num_fewshot=job.num_fewshot)
        instances: dict[str, list[Any]] = {}
        for name, task in tasks["tasks"].items():
            check_task(
                name, task, job.num_fewshot, job.manner.likelihood, options.confirm_run_unsafe_code
            )
            _set_examples(task, job.num_fewshot)
            _build(task, job, options, tokenizer)
            for instance in task.instances:
                several = instances.setdefault(instance.request_type, [])
                several += [instance] * (instance.repeats or 1)
    return Built(job, tasks, instances)


def lay_out(built: Built, tokenizer: Tokenizer, model: ModelConfig, origin: str) -> Loaded:
    """Encodes the requests of a job and groups them; raises `UserError` where they do not fit.

    `origin` names what answers them: backend, type and weights.
    """
    works = works_of(built.instances, tokenizer, model, built.job.manner, origin)
    texts = works.get("generate_until")
    if isinstance(texts, Texts):
        _tell(built.job, texts, built.tasks["tasks"])
    return Loaded(built.job, built.tasks, works)


def _tell(job: Job, texts: Texts, tasks: Mapping[str, Any]) -> None:
    """Says once which settings win: for all tasks that have them in common."""
    alike: dict[str, list[str]] = {}
    for name, (config, _) in texts.settings.items():
        told = told_settings(
            tasks[name].config.generation_kwargs or {}, job.manner.sampling, config
        )
        alike.setdefault(told, []).append(name)
    for told, names in alike.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        notice(f"{names[0]}{others}: {told}")


def _build(task: Any, job: Job, options: EvalOptions, tokenizer: Tokenizer) -> None:
    from lm_eval.evaluator_utils import get_sample_size

    task.set_fewshot_seed(seed=options.fewshot_seed)
    template = functools.partial(templated, tokenizer)
    task.build_all_requests(
        limit=get_sample_size(task, options.limit or None),
        rank=0,
        world_size=1,
        system_instruction=options.system_instruction or None,
        apply_chat_template=job.chat,
        fewshot_as_multiturn=job.fewshot_as_multiturn,
        chat_template=template if job.chat else None,
        tokenizer_name="",
    )
    # Built once: `evaluate` would draw the examples anew.
    task.build_all_requests = lambda **_: None


def _set_examples(task: Any, num_fewshot: int | None) -> None:
    """Those that are asked for, else the task's own, else none."""
    if num_fewshot is not None:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without a bar for each of fifty subtasks, and without what lm_eval tells of its own keys."""
    import datasets
    import lm_eval.api.task as module

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    logger, bar = logging.getLogger("lm_eval"), module.tqdm
    level = logger.level
    logger.setLevel(logging.ERROR)
    module.tqdm = lambda rows, *_, **__: rows  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        module.tqdm = bar
        logger.setLevel(level)
