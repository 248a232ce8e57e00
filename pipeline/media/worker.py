"""The decoder process: everything that touches a stranger's bytes happens here.

    python -m pipeline.media.worker HANDLE PARENT_PID

It reads jobs from the socket HANDLE, puts patch rows into the buffer that comes with each, and may be
killed at any moment: it holds nothing that anyone else needs. It dies with its parent, leaves no core
dump, says nothing on the terminal, computes on one thread, and its address space is bounded.
"""

import ctypes
import os
import resource
import signal
import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.config import DecodeConfig, ImagesConfig, LimitsConfig
from pipeline.errors import ErrorCode, MediaError
from pipeline.media.byte_range import ByteRange
from pipeline.media.container import ClipJob, ClipReport, MediaInfo, MediaType
from pipeline.media.frames import open_frames
from pipeline.media.grid import grid_of, row_bytes
from pipeline.media.image import allow_pixels
from pipeline.media.location import open_binary
from pipeline.media.patchify import write_clip
from pipeline.media.probe import probe_media
from pipeline.media.protocol import receive_message, send_message
from pipeline.media.shared_buffer import map_window
from pipeline.media.video_pyav import IndexCache

_PR_SET_PDEATHSIG = 1
# What a probe may read in the time that a second of video is given: 8 Mbit/s is a usual rate.
_BYTES_PER_VIDEO_SECOND = 1_000_000
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "cannot allocate memory")


class Worker:
    """Serves one sandbox until it hangs up."""

    def __init__(
        self, channel: socket.socket, decode: DecodeConfig, images: ImagesConfig, limits: LimitsConfig
    ) -> None:
        self._channel = channel
        self._decode_config, self._images, self._limits = decode, images, limits
        self._cache = IndexCache()

    def serve(self) -> None:
        """Answer messages one by one; return when the parent is gone."""
        while True:
            try:
                message, handle = receive_message(self._channel)
            except EOFError:
                return
            try:
                reply = self._answer(message, handle)
            finally:
                if handle is not None:
                    os.close(handle)
            send_message(self._channel, reply)

    def _answer(self, message: dict[str, Any], handle: int | None) -> dict[str, Any]:
        uri = message["uri"]
        try:
            if message["do"] == "probe":
                return {"info": asdict(self._probe(uri, _byte_range(message), message["with_times"]))}
            assert handle is not None, "a decode job comes with its buffer"
            return {"report": asdict(self._decode(_job(message), handle, message["offset"]))}
        except MediaError as error:
            return {"code": error.code, "message": error.message}
        except AssertionError:
            raise
        except Exception as error:  # a stranger's bytes can make a library raise anything
            code, text = _classify(error), f"{type(error).__name__}: {error}"
            return {"code": code, "message": f"{uri}: expected decodable data: {text}"}

    def _probe(self, uri: str, byte_range: ByteRange | None, with_times: bool) -> MediaInfo:
        with open_binary(uri, byte_range=byte_range, max_bytes=self._limits.max_file_bytes) as file:
            self._extend_deadline(file.seek(0, os.SEEK_END) / _BYTES_PER_VIDEO_SECOND)
            file.seek(0)
            return probe_media(file, uri, self._images, self._limits, with_times=with_times)

    def _decode(self, job: ClipJob, handle: int, offset: int) -> ClipReport:
        start = time.process_time()
        grid = grid_of(job.media_type, len(job.frame_indices), job.resized_height, job.resized_width)
        shape = grid[0] * grid[1] * grid[2], row_bytes(job.media_type)
        num_bytes = shape[0] * shape[1]
        window, within = map_window(handle, offset, num_bytes)
        rows = np.frombuffer(window, np.uint8, num_bytes, within).reshape(shape)
        with open_binary(job.uri, byte_range=job.byte_range, max_bytes=self._limits.max_file_bytes) as file:
            clip = open_frames(job, file, self._decode_config, self._images, self._limits, self._cache)
            write_clip(clip.frames, rows, job.media_type, job.resized_height, job.resized_width)
        return ClipReport(backend=clip.backend, num_bytes=num_bytes, decode_seconds=time.process_time() - start)

    def _extend_deadline(self, video_seconds: float) -> None:
        seconds = video_seconds * self._decode_config.timeout_per_video_second
        send_message(self._channel, {"extend_seconds": seconds})


def _job(message: dict[str, Any]) -> ClipJob:
    return ClipJob(
        uri=message["uri"],
        media_type=MediaType(message["media_type"]),
        frame_indices=tuple(message["frame_indices"]),
        num_source_frames=message["num_source_frames"],
        resized_height=message["resized_height"],
        resized_width=message["resized_width"],
        byte_range=_byte_range(message),
    )


def _byte_range(message: dict[str, Any]) -> ByteRange | None:
    place = message["byte_range"]
    return None if place is None else ByteRange(**place)


def _classify(error: Exception) -> ErrorCode:
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(phrase in text for phrase in _OUT_OF_MEMORY):
        return ErrorCode.LIMIT_EXCEEDED
    return ErrorCode.UNREADABLE if isinstance(error, OSError) else ErrorCode.CORRUPT_MEDIA


def _die_with(parent_pid: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it went before the line above
        sys.exit(1)


def _bound_memory(limits: LimitsConfig) -> None:
    """Bound the address space to what is mapped now plus the limit; needs every library loaded."""
    num_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    bound = num_pages * resource.getpagesize() + limits.max_decoder_bytes
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Run as the child of a sandbox."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    _die_with(int(sys.argv[2]))
    settings, _ = receive_message(channel)
    limits = LimitsConfig.model_validate(settings["limits"])
    torch.set_num_threads(1)
    Image.init()
    allow_pixels(limits)
    _bound_memory(limits)
    worker = Worker(
        channel,
        DecodeConfig.model_validate(settings["decode"]),
        ImagesConfig.model_validate(settings["images"]),
        limits,
    )
    send_message(channel, {"ready": True})
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # until here stderr was kept, to say why a start failed
    worker.serve()


if __name__ == "__main__":
    main()
