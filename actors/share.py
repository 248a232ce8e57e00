"""The desk at which decode actors ask whether a GPU wants to decode, an actor of its own: one a run."""

from typing import Any, Self

import ray

from pipeline.device.nvdec.share import DeviceShare


class ShareDesk:
    """A `DeviceShare` in an actor, as decode and encode actors see it; passed to them by value.

    Asking costs a decode actor a millisecond a request; telling is not waited for.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @classmethod
    def start(cls) -> Self:
        """Start the actor; it ends when the last desk is gone, and is started again, empty, where its node is lost."""
        return cls(ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(DeviceShare).remote())

    def claim(self, request_id: str) -> bool:
        """Whether a request is to go to a GPU."""
        return bool(ray.get(self._handle.claim.remote(request_id)))

    def open(self, num_requests: int) -> None:
        """The calling actor's GPU takes so many requests at once; a restarted actor has the name it had."""
        self._handle.open.remote(ray.get_runtime_context().get_actor_id(), num_requests)

    def release(self, request_id: str, num_requests: int) -> None:
        """A request has been decoded, and so many are taken from now on."""
        self._handle.release.remote(request_id)
        self.open(num_requests)
