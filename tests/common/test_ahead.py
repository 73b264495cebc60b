"""Preparing items in a thread: order, errors, bounds and an early end."""

import threading
import time

import pytest

from jaxllada.common.ahead import Ahead


def test_items_come_in_order():
    with Ahead(iter(range(100))) as items:
        assert list(items) == list(range(100))


def test_an_error_is_raised_where_its_item_would_have_been_taken():
    def broken():
        yield 1
        yield 2
        raise OSError("no space")

    taken = []
    with pytest.raises(OSError, match="no space"), Ahead(broken()) as items:  # noqa: PT012
        for item in items:
            taken.append(item)
    assert taken == [1, 2]


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_is_prepared_than_said(depth):
    made = []

    def count():
        for number in range(20):
            made.append(number)
            yield number

    with Ahead(count(), depth) as items:
        for number in items:
            time.sleep(0.01)
            assert len(made) <= number + 2 + depth


def test_leaving_early_stops_the_thread_and_what_it_reads():
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    before = threading.active_count()
    with Ahead(endless()) as items:
        next(items)
    assert threading.active_count() == before
    assert closed.wait(5)


def test_nothing_comes_after_the_end_an_error_or_closing():
    whole = Ahead(iter([1, 2]))
    assert list(whole) == [1, 2]
    assert list(whole) == []

    def broken():
        yield 1
        raise OSError("no space")

    failing = Ahead(broken())
    assert next(failing) == 1
    with pytest.raises(OSError, match="no space"):
        next(failing)
    assert list(failing) == []

    closed = Ahead(iter([1, 2]))
    closed.close()
    assert list(closed) == []
