"""Items made beside other work: in order, up to a bound, with their errors, and no further than anyone wants."""

import threading
from collections.abc import Iterator

import pytest

from pipeline.errors import RunError
from pipeline.flow.lookahead import Lookahead


def taken_from(ahead: Lookahead[int]) -> list[int]:
    found: list[int] = []
    while items := ahead.take():
        found += items
    return found


@pytest.mark.parametrize("most", [1, 3, 100])
@pytest.mark.parametrize("count", [0, 1, 20])
@pytest.mark.parametrize("in_turn", [0, 1, 5])
def test_every_item_comes_once_and_in_order(most: int, count: int, in_turn: int) -> None:
    with Lookahead(iter(range(count)), size_of=lambda _: 1, most=most) as ahead:
        found = [item for _ in range(in_turn) for item in ahead.take()]
        ahead.begin()
        assert found + taken_from(ahead) == list(range(count))
        assert ahead.take() == []


def test_until_it_begins_items_are_made_in_the_callers_thread_when_they_are_asked_for() -> None:
    threads = []

    def items() -> Iterator[int]:
        for number in range(4):
            threads.append(threading.current_thread())
            yield number

    with Lookahead(items(), size_of=lambda _: 1, most=10) as ahead:
        for number in range(2):
            assert ahead.take() == [number]
            assert len(threads) == number + 1
        assert not ahead.is_beside
        ahead.begin()
        assert ahead.is_beside
        assert taken_from(ahead) == [2, 3]
    assert threads[0] is threads[1] is threading.current_thread()
    assert threads[2] is threads[3] is not threads[0]


def test_it_says_when_there_is_nothing_else_to_do() -> None:
    asked: list[bool] = []
    go_on = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        assert go_on.wait(60)
        asked.append(ahead.is_awaited)
        yield 1
        while not ahead.is_awaited:
            ahead.check()
        yield 2

    with Lookahead(items(), size_of=lambda _: 1, most=10) as ahead:
        assert ahead.take() == [0]
        ahead.begin()
        go_on.set()
        with ahead._changed:
            assert ahead._changed.wait_for(lambda: ahead._ready == [1], 60)
        assert asked == [False]
        assert taken_from(ahead) == [1, 2]
        assert not ahead.is_awaited


def test_all_that_is_ready_is_taken_at_once_and_no_more_is_made_than_the_bound_allows() -> None:
    made: list[int] = []
    full = threading.Event()

    def items() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            if len(made) == 4:
                full.set()
            yield number

    with Lookahead(items(), size_of=lambda number: 0 if number == 1 else 2, most=5) as ahead:
        assert ahead.take() == [0]
        ahead.begin()
        assert full.wait(60)
        # 1 counts as one, 2 and 3 as two each: that is the bound.
        with ahead._changed:
            assert ahead._changed.wait_for(lambda: len(ahead._ready) == 3, 60)
        assert made == [0, 1, 2, 3]
        assert ahead.take() == [1, 2, 3]
        assert taken_from(ahead) == [4, 5, 6, 7, 8, 9]


def test_an_error_comes_in_its_turn_and_again() -> None:
    def items() -> Iterator[int]:
        yield 0
        yield 1
        raise ValueError("two")

    with Lookahead(items(), size_of=lambda _: 1, most=10) as ahead:
        assert ahead.take() == [0]
        ahead.begin()
        assert ahead.take() == [1]
        for _ in range(2):
            with pytest.raises(ValueError, match="two"):
                ahead.take()


def test_leaving_ends_the_thread_whether_it_waits_or_works() -> None:
    begun = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        begun.set()
        while True:
            ahead.check()

    with Lookahead(items(), size_of=lambda _: 1, most=10) as ahead:
        ahead.take()
        ahead.begin()
        assert begun.wait(60)
    assert ahead._thread is not None
    assert not ahead._thread.is_alive()
    with pytest.raises(RunError, match="ended before"):
        ahead.check()

    with Lookahead(iter(range(10)), size_of=lambda _: 1, most=2) as full:
        full.take()
        full.begin()
    assert full._thread is not None
    assert not full._thread.is_alive()
