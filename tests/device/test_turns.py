"""Calls that find no device memory: made again, alone, once."""

import threading

import pytest
import torch

from benchmarks.requests import random_request
from pipeline.config import Config
from pipeline.device.transfer import Arrived, HostTransfer
from pipeline.device.turns import MemoryTurns
from pipeline.errors import ModelError, RequestError
from pipeline.request.table import Request
from pipeline.stages.encode import Encode


class Scarce:
    """Work for which there is no memory the first few times."""

    def __init__(self, num_failures: int) -> None:
        self.num_calls = 0
        self._num_failures = num_failures

    def __call__(self) -> int:
        self.num_calls += 1
        if self.num_calls <= self._num_failures:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.num_calls


@pytest.mark.parametrize("num_failures", [0, 1])
def test_what_found_no_memory_is_done_once_more(num_failures: int) -> None:
    assert MemoryTurns()(Scarce(num_failures), "r") == num_failures + 1


def test_what_does_not_fit_by_itself_is_an_error_that_names_the_request() -> None:
    turns, scarce = MemoryTurns(), Scarce(2)
    with pytest.raises(RequestError, match="request r does not fit"):
        turns(scarce, "r")
    assert scarce.num_calls == 2
    assert turns(scarce, "r") == 3


def test_other_errors_are_their_own() -> None:
    turns = MemoryTurns()
    with pytest.raises(ZeroDivisionError):
        turns(lambda: 1 // 0, "r")
    assert turns(lambda: 1, "r") == 1


def test_the_second_attempt_waits_for_those_under_way_and_holds_up_new_ones() -> None:
    turns = MemoryTurns()
    log: list[str] = []
    neighbour_begun, neighbour_may_end, failed = threading.Event(), threading.Event(), threading.Event()

    def neighbour() -> None:
        neighbour_begun.set()
        assert neighbour_may_end.wait(60)
        log.append("neighbour ends")

    def scarce() -> None:
        if not failed.is_set():
            failed.set()
            raise torch.OutOfMemoryError("CUDA out of memory")
        log.append("alone")

    def newcomer() -> None:
        log.append("newcomer")

    threads = [threading.Thread(target=turns, args=(work, "r")) for work in (neighbour, scarce, newcomer)]
    threads[0].start()
    assert neighbour_begun.wait(60)
    threads[1].start()
    with turns._changed:
        assert turns._changed.wait_for(lambda: turns._is_one_alone, 60)
    threads[2].start()
    neighbour_may_end.set()
    for thread in threads:
        thread.join(60)
    assert log == ["neighbour ends", "alone", "newcomer"]


class ScarceTransfer(HostTransfer):
    """A device that has no room for the first request's bytes."""

    def __init__(self) -> None:
        self._has_failed = False

    def __call__(self, request: Request) -> Arrived:
        if not self._has_failed:
            self._has_failed = True
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(request)


def test_a_request_that_found_no_room_for_its_bytes_is_encoded_after_all() -> None:
    stage = Encode(Config.from_values({"encode": {"device": "cpu", "threads": 1}}), "random:tiny")
    request = random_request((2, 4, 4))
    expected = stage(request)
    stage._transfer = ScarceTransfer()
    assert stage(request)["vectors"] == expected["vectors"]


class CrowdedTower:
    """A real tower on a device whose memory another call has, the first few times."""

    def __init__(self, tower: torch.nn.Module, num_failures: int) -> None:
        self._tower, self._num_failures = tower, num_failures

    def __call__(self, *arguments: object, **settings: object) -> object:
        self._num_failures -= 1
        if self._num_failures >= 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._tower(*arguments, **settings)


def test_a_temporal_patch_that_others_left_no_memory_for_is_encoded_after_them() -> None:
    stage = Encode(Config.from_values({"encode": {"device": "cpu", "threads": 1}}), "random:tiny")
    request = random_request((2, 4, 4))
    expected, tower = stage(request)["vectors"], stage._encoder._tower
    num_halvings = 2  # two temporal patches, then one
    stage._encoder._tower = CrowdedTower(tower, num_halvings)
    assert stage(request)["vectors"] == expected
    stage._encoder._tower = CrowdedTower(tower, 2 * num_halvings)
    with pytest.raises(ModelError, match=r"one temporal patch of 4x4 patches does not fit .*max_tokens_per_frame"):
        stage(request)
