"""What the decoder process does: everything that touches a stranger's bytes happens here.

It reads jobs from a socket, puts patch rows or planes into the buffer that comes with each, and may be killed at any
moment: it holds nothing that anyone else needs. template.py says how it comes to be.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from typing import Any, BinaryIO

from pipeline.config import DecodeConfig, ImagesConfig, LimitsConfig
from pipeline.errors import ErrorCode, MediaError
from pipeline.media.byte_range import ByteRange
from pipeline.media.container import ClipJob, ClipReport, MediaInfo
from pipeline.media.content import name_content
from pipeline.media.frames import open_frames
from pipeline.media.grid import grid_of, row_bytes
from pipeline.media.location import open_binary
from pipeline.media.patchify import fill_patches
from pipeline.media.planes import NotPlanarError, PlaneWriter
from pipeline.media.probe import probe_media
from pipeline.media.protocol import receive_message, send_message
from pipeline.media.shared_buffer import BufferWriter
from pipeline.media.video_pyav import IndexCache

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "cannot allocate memory")


class Worker:
    """Serves one sandbox until it hangs up."""

    def __init__(self, decode: DecodeConfig, images: ImagesConfig, limits: LimitsConfig) -> None:
        self._decode_config, self._images, self._limits = decode, images, limits
        self._cache = IndexCache()
        self._planes = PlaneWriter()
        self._buffers = BufferWriter()

    def serve(self, channel: socket.socket) -> None:
        """Answer messages one by one; return when the sandbox is gone."""
        while True:
            try:
                message, handle = receive_message(channel)
            except EOFError:
                return
            try:
                reply = self._answer(channel, message, handle)
            finally:
                if handle is not None:
                    os.close(handle)
            send_message(channel, reply)

    def _answer(self, channel: socket.socket, message: dict[str, Any], handle: int | None) -> dict[str, Any]:
        uri = message["uri"]
        try:
            if message["do"] == "probe":
                wishes = {name: message[name] for name in ("with_times", "with_keyframes")}
                return {"info": asdict(self._probe(channel, uri, _byte_range(message), wishes))}
            if message["do"] == "name":
                return {"name": self._name(channel, uri)}
            assert handle is not None, "a decode job comes with its buffer"
            return {"report": asdict(self._decode(ClipJob.from_values(message), handle, message["offset"]))}
        except MediaError as error:
            return {"code": error.code, "message": error.message}
        except AssertionError:
            raise
        except Exception as error:  # a stranger's bytes can make a library raise anything
            code, text = _classify(error), f"{type(error).__name__}: {error}"
            expected = "decodable data"
            if code is ErrorCode.LIMIT_EXCEEDED:
                expected = f"to need at most limits.max_decoder_bytes={self._limits.max_decoder_bytes}"
            return {"code": code, "message": f"{uri}: expected {expected}: {text}"}

    def _probe(
        self, channel: socket.socket, uri: str, byte_range: ByteRange | None, wishes: dict[str, bool]
    ) -> MediaInfo:
        with open_binary(uri, byte_range=byte_range, max_bytes=self._limits.max_file_bytes) as file:
            send_message(channel, {"file_bytes": file.seek(0, os.SEEK_END)})  # which puts off the deadline
            file.seek(0)
            return probe_media(file, uri, self._images, self._limits, **wishes)

    def _name(self, channel: socket.socket, uri: str) -> str:
        with open_binary(uri) as file:
            num_bytes = file.seek(0, os.SEEK_END)
            send_message(channel, {"file_bytes": num_bytes})  # as above
            file.seek(0)
            return name_content(file, num_bytes)

    def _decode(self, job: ClipJob, handle: int, offset: int) -> ClipReport:
        start = time.process_time()
        self._buffers.begin(handle)
        report: ClipReport | None = None
        with suppress(NotPlanarError):  # it was of planes until some frame in the middle
            report = self._write(job, offset)
        if report is None:
            self._cache.drop()
            self._cache = IndexCache()  # as if nothing of it had been read: its rows are those of a clip alone
            report = self._write(replace(job, plane_size=None), offset)
        return replace(report, decode_seconds=time.process_time() - start)

    def _write(self, job: ClipJob, offset: int) -> ClipReport:
        """Decode a clip into its rows or planes. Raises: NotPlanarError where a later frame is of no planes."""
        t, h, w = grid_of(job.media_type, len(job.frame_indices), job.resized_height, job.resized_width)
        with self._opened(job) as file:
            clip = open_frames(job, file, self._decode_config, self._images, self._limits, self._cache, self._planes)
            if clip.pictures is not None and job.plane_size is not None:
                num_bytes = self._planes.write_into(self._buffers, offset, clip.pictures, t, job.plane_size)
            else:
                shape = h * w, row_bytes(job.media_type)
                num_bytes = t * shape[0] * shape[1]
                patches = self._buffers.patches(offset, t, shape)
                fill_patches(clip.frames, patches, job.media_type, job.resized_height, job.resized_width)
        is_planar = clip.pictures is not None
        return ClipReport(backend=clip.backend, num_bytes=num_bytes, decode_seconds=0.0, is_planar=is_planar)

    @contextmanager
    def _opened(self, job: ClipJob) -> Iterator[BinaryIO]:
        """A job's file, which stays open where the cache keeps it."""
        with ExitStack() as stack:
            opened = open_binary(job.uri, byte_range=job.byte_range, max_bytes=self._limits.max_file_bytes)
            file = stack.enter_context(opened)
            yield file
            if self._cache.keeps(file):
                stack.pop_all()


def _byte_range(message: dict[str, Any]) -> ByteRange | None:
    place = message["byte_range"]
    return None if place is None else ByteRange(**place)


def _classify(error: Exception) -> ErrorCode:
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(phrase in text for phrase in _OUT_OF_MEMORY):
        return ErrorCode.LIMIT_EXCEEDED
    return ErrorCode.UNREADABLE if isinstance(error, OSError) else ErrorCode.CORRUPT_MEDIA
