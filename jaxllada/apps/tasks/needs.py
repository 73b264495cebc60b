"""What a task needs of its data, read off its definition: splits and columns."""

import re
from collections.abc import Callable, Mapping
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
    """Columns that templates cannot do without; none where Python code makes the rows."""
    words: frozenset[str]
    """Plain words of the definition that lm_eval takes for columns if there are such."""
    label: str | None
    """The column of an option's index, which text files hold as text."""
    is_made: bool
    """Python code makes the rows: `words` are columns of what it makes."""

    @property
    def splits(self) -> list[str]:
        """The splits that have to be there."""
        wanted = [self.asked, self.shown if self.shots else None]
        return list(dict.fromkeys(split for split in wanted if split))

    def check_made(self, there: list[str], where: str) -> None:
        """Raises `UserError` where rows that Python code made lack a column of a plain word."""
        if self.is_made and (missing := sorted(self.words - set(there))):
            raise UserError(f"{where} has no column {', '.join(map(repr, missing))}")

    def check(self, tables: Mapping[str, Any], where: Callable[..., str], *, strict: bool) -> None:
        """Raises `UserError` where a split is missing or empty or lacks a column.

        `where(split)` names task and file. `strict` also asks for columns of plain words, and
        for a value in every row: lm_eval would take such a word itself for the answer, and write
        None into prompts.
        """
        for split in self.splits:
            if split not in tables:
                hint = "" if split == self.asked else f" for {self.shots} examples; 0 need none"
                there = ", ".join(tables)
                raise UserError(f"{where()} has no split {split!r}, only {there}{hint}")
            table = tables[split]
            if not len(table):
                raise UserError(f"{where(split)} has no rows")
            there = getattr(table, "column_names", None)
            if not there:
                continue
            wanted = self.columns | self.words if strict and not self.is_made else self.columns
            if missing := sorted(wanted - set(there)):
                raise UserError(
                    f"{where(split)} has no column {', '.join(map(repr, missing))}; it has"
                    f" {', '.join(there)}"
                )
            for name in sorted(wanted) if strict else ():
                if empty := table.data.column(name).null_count:
                    raise UserError(
                        f"{where(split)}: {empty} of {len(table)} rows have no {name!r}"
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
    choices, target = config.doc_to_choice, config.doc_to_target
    is_made = bool(config.process_docs or (examples and examples.process_docs))
    columns, words = set(), set()
    for template in (config.doc_to_text, target, choices):
        if isinstance(template, str) and re.fullmatch(r"[A-Za-z_]\w*", template):
            words.add(template)
        elif not is_made:
            columns |= named_in(template)
    if config.process_results or (isinstance(choices, list) and target in choices):
        words.discard(target)
    label = target if choices is not None and target in words and not is_made else None
    return Needs(asked, shown, shots, frozenset(columns), frozenset(words), label, is_made)


def named_in(template: Any) -> set[str]:
    """The columns that a template has to have; none where it asks whether some are there."""
    from jinja2 import meta, nodes
    from lm_eval.utils import env

    if not isinstance(template, str) or "{" not in template:
        return set()
    parsed = env.parse(template)
    tests = {test.name for test in parsed.find_all(nodes.Test)}
    return set() if tests & {"defined", "undefined"} else meta.find_undeclared_variables(parsed)
