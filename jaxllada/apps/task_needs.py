"""What a task needs of its data, read off its definition: splits and columns."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxllada.common.errors import UserError


class Needs(NamedTuple):
    """Splits and columns of one task."""

    asked: str | None
    """The split whose rows are asked; None for a task that says so in Python only."""
    shown: str | None
    """The split that examples are drawn from."""
    shots: int
    """Examples in a prompt."""
    columns: frozenset[str]
    """Columns that the templates name; none where Python code makes the prompts."""

    @property
    def splits(self) -> list[str]:
        """The splits that have to be there."""
        wanted = [self.asked, self.shown if self.shots or self.shown == self.asked else None]
        return list(dict.fromkeys(split for split in wanted if split))

    def check(self, splits: Mapping[str, Any], task: str, where: str) -> None:
        """Raises `UserError` where a split is missing or empty, or lacks a column."""
        for split in self.splits:
            if split not in splits:
                raise UserError(
                    f"tasks: {task}: {where} has no split {split!r}, only {', '.join(splits)}"
                )
            table = splits[split]
            if not len(table):
                raise UserError(f"tasks: {task}: {where}, {split}, has no rows")
            columns = getattr(table, "column_names", None)
            missing = sorted(self.columns - set(columns or self.columns))
            if columns and missing:
                raise UserError(
                    f"tasks: {task}: {where}, {split}, has no column"
                    f" {', '.join(map(repr, missing))}; it has {', '.join(columns)}"
                )


def needs_of(task: Any, num_fewshot: int | None = None) -> Needs:
    """Reads the needs of a task off its configuration; `num_fewshot` goes before the task's own."""
    config = task.config
    examples = config.fewshot_config
    asked = config.test_split or config.validation_split
    shown = examples.split if examples else config.fewshot_split
    if shown is None and not (examples and examples.samples is not None):
        shown = config.training_split or config.validation_split or config.test_split
    own = config.num_fewshot
    shots = own or 0
    if num_fewshot is not None and own != 0:  # as in lm_eval, a task that says 0 keeps 0
        shots = num_fewshot
    made = config.process_docs or (examples and examples.process_docs)
    parts = (config.doc_to_text, config.doc_to_target, config.doc_to_choice)
    columns = frozenset() if made else frozenset().union(*map(named_in, parts))
    return Needs(asked, shown, shots, columns)


def named_in(template: Any) -> set[str]:
    """The columns that a template has to have; a plain word is one where it names a column."""
    from jinja2 import meta
    from lm_eval.utils import env

    if not isinstance(template, str) or "{" not in template:
        return set()
    parsed = env.parse(template)
    return meta.find_undeclared_variables(parsed)
