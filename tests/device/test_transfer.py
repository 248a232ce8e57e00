import threading

import numpy as np
import torch

from benchmarks.requests import random_request
from pipeline.device.results import ResultCopy
from pipeline.device.transfer import host_tensor, make_transfer
from pipeline.request.table import unwrap_request

CPU = torch.device("cpu")


def test_on_the_cpu_the_tensor_is_the_request_itself() -> None:
    request = unwrap_request(random_request((2, 4, 4)))
    arrived = make_transfer(CPU, num_slots=2)(request)
    assert arrived.buffer.data_ptr() == request.address
    assert (arrived.num_copies, arrived.way) == (0, "view")
    assert np.array_equal(arrived.buffer.numpy(), request.buffer)


def test_the_tensor_keeps_the_request_alive() -> None:
    arrived = make_transfer(CPU, num_slots=2)(unwrap_request(random_request((2, 4, 4), seed=3)))
    expected = unwrap_request(random_request((2, 4, 4), seed=3)).buffer
    filler = [random_request((2, 4, 4), seed=seed) for seed in range(20)]
    assert np.array_equal(arrived.buffer.numpy(), expected)
    assert len(filler) == 20


def test_several_threads_get_their_own_requests() -> None:
    transfer = make_transfer(CPU, num_slots=2)
    found: dict[int, bool] = {}

    def take(seed: int) -> None:
        request = unwrap_request(random_request((1, 4, 4), seed=seed))
        found[seed] = bool((transfer(request).buffer == host_tensor(request)).all())

    threads = [threading.Thread(target=take, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[seed] for seed in range(8))


def test_results_of_the_cpu_come_back_as_they_are() -> None:
    results = [torch.ones(3, 4), torch.ones(2, 4)]
    assert all(found is given for found, given in zip(ResultCopy(CPU)(results, None), results, strict=True))
