"""The process in which a GPU's decoders are fed: everything of theirs that touches a stranger's bytes happens here.

    python -m pipeline.device.nvdec.worker PARENT_PID ORDINAL CHANNEL...

A thread serves each channel, one clip at a time; ctypes and PyAV let go of the GIL while they work. Frames go into
device memory that the parent owns and exports, so that nothing the parent reads goes with this process, which may be
killed at any moment. Its address space is not bounded, because CUDA reserves more of it than there is memory; what a
medium may ask for is checked as on the CPU. Linux ends it with its parent.
"""

import os
import socket
import sys
import threading
from dataclasses import asdict
from typing import Any

from pipeline.config import LimitsConfig
from pipeline.device.nvdec.clip import ClipTools, decode_clip
from pipeline.device.nvdec.crash import report_crashes
from pipeline.device.nvdec.cuvid import Cuvid
from pipeline.device.nvdec.driver import Driver, DriverError
from pipeline.device.nvdec.session import RefusedError, Session
from pipeline.errors import MediaError
from pipeline.media.child import die_with
from pipeline.media.container import ClipJob
from pipeline.media.location import open_binary
from pipeline.media.protocol import receive_message, send_message
from pipeline.media.video_pyav import IndexCache

STEP_SECONDS = 0.01
_MOST_REASON = 2_000  # characters


class Lane:
    """Serves one channel on one thread."""

    def __init__(self, channel: socket.socket, cuvid: Cuvid, driver: Driver, limits: LimitsConfig) -> None:
        self._channel = channel
        self._cuvid, self._driver = cuvid, driver
        self._tools = ClipTools(cache=IndexCache(), limits=limits)
        self._opened: tuple[str, int] | None = None

    def serve(self) -> None:
        """Answer jobs until the parent hangs up; a device that no longer works ends the process."""
        try:
            self._driver.enter()
            session = Session(self._cuvid, self._driver, STEP_SECONDS)
            while True:
                message, _ = receive_message(self._channel)
                send_message(self._channel, self._answer(message, session))
        except (EOFError, OSError):
            os._exit(0)
        except BaseException:
            os._exit(1)

    def _answer(self, message: dict[str, Any], session: Session) -> dict[str, Any]:
        job = ClipJob.from_values(message)
        address = self._open(message["memory"])
        try:
            with open_binary(job.uri, byte_range=job.byte_range, max_bytes=self._tools.limits.max_file_bytes) as file:
                colours = decode_clip(job, file, (message["width"], message["height"]), address, session, self._tools)
        except (RefusedError, MediaError) as error:
            return _refusal(str(error))
        except Exception as error:  # a stranger's bytes can make a library raise anything
            session.check()
            return _refusal(f"{type(error).__name__}: {error}")
        return asdict(colours)

    def _open(self, handle: str) -> int:
        """This lane's memory, opened when it is new; the parent frees what was open before once a job is answered."""
        if self._opened is not None and self._opened[0] == handle:
            return self._opened[1]
        if self._opened is not None:
            self._driver.close_exported(self._opened[1])
        address = self._driver.open_exported(bytes.fromhex(handle))
        self._opened = handle, address
        return address


def _refusal(reason: str) -> dict[str, Any]:
    """An answer that the parent takes, however long the medium's name is."""
    return {"refused": reason[:_MOST_REASON]}


def main() -> None:
    """Run as the child of a `WorkerProcess`."""
    parent_pid, ordinal, *handles = map(int, sys.argv[1:])
    die_with(parent_pid)
    channels = [socket.socket(fileno=handle) for handle in handles]
    settings, _ = receive_message(channels[0])
    limits = LimitsConfig.model_validate(settings["limits"])
    report_crashes()
    try:
        cuvid, driver = Cuvid(), Driver(ordinal)
    except DriverError as error:
        send_message(channels[0], {"error": str(error)})
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    threads = [threading.Thread(target=Lane(channel, cuvid, driver, limits).serve, daemon=True) for channel in channels]
    for thread in threads:
        thread.start()
    send_message(channels[0], {"threads": [thread.ident for thread in threads]})
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
