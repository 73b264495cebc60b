"""Rows of one split, in order: a view of a table, a window of it, or some of its rows."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jaxllada.common.data.json_lines import JsonRows


class Part(NamedTuple):
    """Some rows of one split, in order. `size` is None while the end of a stream is unknown."""

    source: str
    split: str
    columns: tuple[str, ...]
    size: int | None
    open: Callable[[int], Iterator[dict[str, Any]]]
    named: Callable[[int], str] | None = None

    def where(self, row: int) -> str:
        """Names a row of this part for an error message, by file and line where that is known."""
        if self.named is not None:
            return self.named(row)
        return f"{self.source}, {self.split} row {row}"


def part_of(source: str, split: str, table: Any) -> Part:
    """All rows of a table: a list, `JsonRows`, or a dataset or stream of `datasets`."""
    if isinstance(table, JsonRows):
        names = table.column_names
        return Part(source, split, names, len(table), table.rows, table.name)
    if isinstance(table, list):
        columns = tuple(table[0]) if table else ()
        return Part(source, split, columns, len(table), lambda start: iter(table[start:]))
    if hasattr(table, "select"):
        size = len(table)

        def rows(start: int) -> Iterator[dict[str, Any]]:
            if start >= size:
                return iter(())
            rest = table.select(range(start, size))
            # Ids as arrays: Python lists of a million rows would take hours.
            return iter(rest.with_format("numpy") if "input_ids" in table.column_names else rest)

        return Part(source, split, tuple(table.column_names), size, rows)
    columns = table.column_names or tuple(next(iter(table.take(1)), {}))
    return Part(source, split, tuple(columns), None, lambda start: iter(table.skip(start)))


def window(part: Part, first: int, limit: int | None) -> Part:
    """Rows from `first` on, at most `limit` of them."""
    size = None if part.size is None else max(0, part.size - first)
    if limit is not None:
        size = limit if size is None else min(size, limit)

    def rows(start: int) -> Iterator[dict[str, Any]]:
        if limit is not None and start >= limit:
            return
        for i, row in enumerate(part.open(first + start), start + 1):
            yield row
            if i == limit:
                return

    named = None if part.named is None else lambda row: part.where(first + row)
    return part._replace(size=size, open=rows, named=named)


def chosen(part: Part, place: Callable[[int], int], size: int) -> Part:
    """Some rows of a part: row i is its row `place(i)`, which grows with i."""

    def rows(start: int) -> Iterator[dict[str, Any]]:
        if start >= size:
            return
        wanted, first = start, place(start)
        for number, row in enumerate(part.open(first), first):
            if number == place(wanted):
                yield row
                wanted += 1
                if wanted == size:
                    return

    named = None if part.named is None else lambda row: part.where(place(row))
    return part._replace(size=size, open=rows, named=named)
