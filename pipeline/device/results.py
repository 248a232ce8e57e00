"""Vectors come back the way pixels went: one asynchronous copy into pinned memory, waited for on its own event.

Waiting on the event of this copy leaves later requests running; `.cpu()` would wait for the whole device.
"""

import torch


def to_host(vectors: torch.Tensor) -> torch.Tensor:
    """A copy of `vectors` in host memory, complete on return.

    Args:
        vectors: any shape, on the CPU or on CUDA, produced on the current stream.
    Cost: on CUDA one device-to-host copy and a wait for it; on the CPU nothing.
    """
    if vectors.device.type == "cpu":
        return vectors
    host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
    host.copy_(vectors, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(vectors.device))
    done.synchronize()
    return host
