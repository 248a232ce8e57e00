"""What comes next is made while the present is worked on: shards are planned beside the run of those before them.

In turn with it, the GPUs would have nothing to do while headers are read, and the pools of actors would start anew with
each shard. So a thread plans ahead, up to a bound, and the runner is given all that is ready at once.
"""

import threading
from collections.abc import Callable, Iterator
from itertools import islice
from types import TracebackType
from typing import Generic, Self, TypeVar

from pipeline.errors import RunError

T = TypeVar("T")


class Lookahead(Generic[T]):
    """Makes items of an iterator before they are asked for; a context manager that ends its thread.

    Until `begin`, an item is made in the caller's thread when it is asked for: there is nothing to do beside it yet.

    Args:
        items: is only iterated by one thread at a time, and calls `check` every so often.
        size_of: what an item counts towards `most`; at least 1.
        most: while less than this is ready, another item is made.
    """

    def __init__(self, items: Iterator[T], *, size_of: Callable[[T], int], most: int) -> None:
        self._items = items
        self._size_of = size_of
        self._most = most
        self._ready: list[T] = []
        self._ready_size = 0
        self._error: BaseException | None = None
        self._has_ended = False
        self._is_awaited = False
        self._is_stopping = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    @property
    def is_beside(self) -> bool:
        """Whether items are made beside other work by now."""
        return self._thread is not None

    @property
    def is_awaited(self) -> bool:
        """Whether there is nothing else to do until the next item is ready."""
        return self._is_awaited

    def check(self) -> None:
        """Raise RunError where nobody wants more items; for what makes them, and may take long over one."""
        if self._is_stopping:
            raise RunError("the run ended before this was planned")

    def begin(self) -> None:
        """From now on, make items beside other work."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="patchwire-lookahead", daemon=True)
            self._thread.start()

    def take(self) -> list[T]:
        """All items that are ready, or the next one; none at the end.

        Raises: what the iterator raised, when the items before it have been taken.
        """
        if self._thread is None:
            return list(islice(self._items, 1))
        with self._changed:
            self._is_awaited = True
            self._changed.wait_for(lambda: self._ready or self._has_ended)
            self._is_awaited = False
            taken, self._ready, self._ready_size = self._ready, [], 0
            self._changed.notify_all()
        if not taken and self._error is not None:
            raise self._error
        return taken

    def _work(self) -> None:
        try:
            for item in self._items:
                if not self._keep(item):
                    return
                del item  # it is the taker's now, and large
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()

    def _keep(self, item: T) -> bool:
        """Hold an item ready, and wait until another one is wanted; False when none ever will be."""
        size = max(1, self._size_of(item))
        with self._changed:
            self._ready.append(item)
            self._ready_size += size
            self._changed.notify_all()
            del item
            self._changed.wait_for(lambda: self._is_stopping or self._ready_size < self._most)
            return not self._is_stopping
