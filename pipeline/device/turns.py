"""Calls that share a device's memory: together as long as there is enough, and alone where there was not."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from pipeline.errors import ModelError, RequestError

T = TypeVar("T")


class IndivisibleError(torch.OutOfMemoryError):
    """There was no device memory for the least that can be computed at once.

    Args:
        alone: to be raised where nothing else had any of the memory.
    """

    def __init__(self, alone: ModelError) -> None:
        super().__init__(str(alone))
        self.alone = alone


class MemoryTurns:
    """Makes a call again that found no device memory, when no other call is under way any more.

    A forward pass halves its chunks by itself (`encoder/encode.py`); this is for everything beside it: the request's
    own bytes, and the vectors of all its patches; and for a pass that other calls have left no room for at all. Safe to
    call from several threads.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_together = 0
        self._is_one_alone = False

    def __call__(self, work: Callable[[], T], request_id: str) -> T:
        """What `work` gives, which must not have changed anything where it raises.

        Raises: RequestError where the device has not the memory for this one call; ModelError where it has not even
            that for the least part of it.
        """
        with self._together():
            try:
                return work()
            except torch.OutOfMemoryError:
                pass  # and what the attempt had, which its frames hold, goes with the error
        with self._alone():
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            try:
                return work()
            except IndivisibleError as error:
                raise error.alone from None
            except torch.OutOfMemoryError as error:
                raise RequestError(
                    f"request {request_id} does not fit into the device's memory, even by itself: {error}; "
                    "use a device that has more, or smaller requests (request.max_patches) into a new output"
                ) from None

    @contextmanager
    def _together(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_one_alone)
            self._num_together += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_together -= 1
                self._changed.notify_all()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_one_alone)
            self._is_one_alone = True
            self._changed.wait_for(lambda: not self._num_together)
        try:
            yield
        finally:
            with self._changed:
                self._is_one_alone = False
                self._changed.notify_all()
