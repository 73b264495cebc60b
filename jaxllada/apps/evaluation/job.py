"""A protocol and the tasks it is for: as asked for, with its prompts, and with its requests."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxllada.apps.evaluation.asked import Manner, Work
from jaxllada.common.config.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class Job:
    """One protocol and the tasks it is for."""

    name: str
    recipe: Recipe | None
    tasks: tuple[str, ...]
    num_fewshot: int | None
    chat: bool
    fewshot_as_multiturn: bool
    manner: Manner
    changed: tuple[str, ...] = ()
    """Keys of the recipe that the user overrode."""


def _below(group: str, members: Mapping[str, list[str]]) -> set[str]:
    direct = members.get(group, [])
    return {*direct, *(name for member in direct for name in _below(member, members))}


class Built(NamedTuple):
    """A job with its tasks and their prompts."""

    job: Job
    tasks: Any
    """lm_eval's `TaskDict`."""
    instances: dict[str, list[Any]]
    """Its requests by their kinds, repetitions written out."""


@dataclass(frozen=True)
class Loaded:
    """A job with its requests, encoded and grouped."""

    job: Job
    tasks: Any
    """lm_eval's `TaskDict`; its requests are built."""
    works: dict[str, Work]
    """The requests by lm_eval's names of their kinds."""

    @property
    def names(self) -> list[str]:
        """What has a score and is part of nothing that has one, as results name it.

        A group without a mean of its own stands for its members.
        """
        groups = self.tasks["groups"]
        scored = [name for name, group in groups.items() if group.has_aggregation]
        inside = {n for name in scored for n in _below(name, self.tasks["group_map"])}
        return [name for name in (*scored, *self.tasks["tasks"]) if name not in inside]
