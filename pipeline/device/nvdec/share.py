"""Who decodes a plan row: a desk that all decode workers of a run ask, so that the GPU's share follows the load.

Work is not divided beforehand. A decode worker that takes a row asks for room; while a GPU has fewer rows ahead of it
than decoders, the row goes there unopened, and otherwise the worker decodes it. A GPU that decodes faster has room
more often, and where the encoder is the slower one rows wait in its queue and no room is given: neither side waits.

Every call may come twice, because Ray runs again what was lost with a worker: what counts are names, not calls. Nobody
tells of a GPU that was lost: its room stays counted, and that many more rows are ahead of the others, no worse. A desk
that was lost itself begins anew: encode workers tell it of their room with every request.
"""


class DeviceShare:
    """Counts the requests that have been handed to the GPUs' decoders; one for a run, called by one at a time."""

    def __init__(self) -> None:
        self._room: dict[str, int] = {}
        self._handed: set[str] = set()

    def open(self, decoders: str, num_requests: int) -> None:
        """A GPU's decoders are there, for so many requests at once; 0: they are not any more."""
        self._room[decoders] = num_requests

    def claim(self, request_id: str) -> bool:
        """Whether a request is to go to the GPU: there is room, or it was handed over before."""
        if request_id not in self._handed and len(self._handed) < sum(self._room.values()):
            self._handed.add(request_id)
        return request_id in self._handed

    def release(self, request_id: str) -> None:
        """A request has been decoded."""
        self._handed.discard(request_id)
