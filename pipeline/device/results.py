"""Vectors come back the way pixels went: asynchronous copies into pinned memory, on a stream of their own.

The copies wait for the event that the vectors' last kernel completes, and the caller for the event behind the copies:
requests that were queued meanwhile go on. `.cpu()` would wait for all of them.
"""

import threading
from collections.abc import Sequence

import torch


class ResultCopy:
    """Brings results from one device to the host; safe to call from several threads.

    Args:
        device: where the results lie.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._lock = threading.Lock()

    def __call__(self, results: Sequence[torch.Tensor], ready: torch.cuda.Event | None) -> list[torch.Tensor]:
        """Copies of `results` in host memory, complete on return.

        Args:
            results: of any shape, one request's.
            ready: completes when they are written; None on the CPU.
        Cost: on CUDA one device-to-host copy each, and one wait, in which the thread sleeps; on the CPU nothing.
        """
        if self._stream is None or ready is None:
            return list(results)
        on_host = [torch.empty(result.shape, dtype=result.dtype, pin_memory=True) for result in results]
        arrived = torch.cuda.Event(blocking=True)
        with self._lock, torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)
            for host, result in zip(on_host, results, strict=True):
                host.copy_(result, non_blocking=True)
                result.record_stream(self._stream)
            arrived.record(self._stream)
        arrived.synchronize()
        return on_host
