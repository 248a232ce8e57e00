"""Decoding in a process that can be killed: a hang, a crash or a bomb costs one error row.

A thread cannot be stopped and native code can hold the GIL, so the only sure deadline is SIGKILL from
another process. The child is forked from a template that has everything loaded (decoder_process.py), at the
first job and after a kill. Jobs run one at a time; patch rows cross in shared memory, everything else as JSON.

A deadline is `decode.timeout_seconds` plus `decode.timeout_per_video_second` for each second of video up
to the last wanted frame. A job knows frames, not seconds, and work goes with frames: 24 count as a
second. A probe may have to read the whole file, and is given as long as a second of video a megabyte.

Where deaths are written down (see attempts.py), a medium whose decoder was killed from outside or crashed is tried
once more at once, because it may be innocent; one that ended its decoder twice is refused.
"""

import re
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from pydantic import TypeAdapter

from pipeline.config import DecodeConfig, ImagesConfig, LimitsConfig
from pipeline.errors import ErrorCode, MediaError, RequestError, Stage
from pipeline.media.attempts import MAX_DEATHS, Attempts, Death
from pipeline.media.byte_range import ByteRange
from pipeline.media.container import ClipJob, ClipReport, MediaInfo
from pipeline.media.decoder_process import DecoderProcess
from pipeline.media.grid import grid_of, planes_bytes, row_bytes
from pipeline.media.protocol import ProtocolError, receive_answer, send_message
from pipeline.media.shared_buffer import BufferPool, SharedBuffer
from pipeline.media.shared_template import SharedTemplate

__all__ = ["Sandbox", "SharedBuffer"]

_FRAMES_PER_SECOND = 24.0
_BYTES_PER_VIDEO_SECOND = 1_000_000  # 8 Mbit/s is a usual rate
_INFO, _REPORT = TypeAdapter(MediaInfo), TypeAdapter(ClipReport)
_NAME = re.compile("(b2|samples)-[0-9a-f]{32}")
_Answer = TypeVar("_Answer")


class Sandbox:
    """Owns one decoder process; use it from one thread at a time, and as a context manager.

    The process starts with the first job, serves many, and is replaced after it was killed or died. Linux
    ends it with the thread that started it (with this process, where the template is shared), so that it cannot outlive
    this process: use a lasting thread.
    `attempts` is where deaths are written down; None forgets them. `template` is what the workers of a machine share;
    None loads one of its own.
    """

    def __init__(
        self,
        decode: DecodeConfig,
        images: ImagesConfig,
        limits: LimitsConfig,
        attempts: Attempts | None = None,
        template: SharedTemplate | None = None,
    ) -> None:
        self._decode, self._images, self._limits = decode, images, limits
        self._attempts = attempts
        self._pool = BufferPool()
        sections = {"decode": decode, "images": images, "limits": limits}
        settings = {name: section.model_dump(mode="json") for name, section in sections.items()}
        self._process = DecoderProcess(settings, template)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child, None while there is none."""
        return self._process.pid

    def probe(
        self,
        uri: str,
        *,
        byte_range: ByteRange | None = None,
        with_times: bool = False,
        with_keyframes: bool = False,
    ) -> MediaInfo:
        """Describe a medium from its header and index.

        Args:
            uri: what `open_binary` takes (from another process: not `memory://`).
            byte_range: where a member lies in its shard.
            with_times: find every frame's presentation time too; reads the whole file.
            with_keyframes: find the frames at which decoding may begin, too; reads the whole file.
        Raises: MediaError with Stage.PROBE; RunError when no decoder process can be started.
        """
        place = None if byte_range is None else byte_range.to_values()
        message = {"do": "probe", "uri": uri, "byte_range": place, "with_times": with_times}
        message["with_keyframes"] = with_keyframes
        return self._ask(uri, Stage.PROBE, partial(self._try, message, None, 0.0, self._info_of))

    def name_content(self, uri: str) -> str:
        """Name a medium's bytes as content.py does.

        Raises: MediaError with Stage.PROBE; RunError when no decoder process can be started.
        Cost: a message more than hashing them here, where what reads a table would have no bound.
        """
        return self._ask(uri, Stage.PROBE, partial(self._try, {"do": "name", "uri": uri}, None, 0.0, _name_of))

    def new_buffer(self, num_bytes: int) -> SharedBuffer:
        """A buffer for `decode`, in pages that an earlier one no longer needs: what is in them is anything."""
        return SharedBuffer(num_bytes, self._pool)

    def decode(self, job: ClipJob, buffer: SharedBuffer, offset: int) -> ClipReport:
        """Turn a clip into patch rows at `offset` bytes of a buffer, in the order that patchify.py gives.

        Or into planes (planes.py), where the job allows it and the clip can be said so; the report tells.
        After an error the clip's part of the buffer holds anything; no other part is touched.
        Raises: MediaError with Stage.DECODE; RequestError when the rows would not fit; RunError when no
            decoder process can be started.
        """
        num_bytes = _num_bytes(job)
        if offset < 0 or offset + num_bytes > buffer.num_bytes:
            raise RequestError(f"{job.uri}: {num_bytes} bytes at offset {offset} do not fit {buffer.num_bytes} bytes")
        message = {"do": "decode", "offset": offset, **job.to_values()}
        parse = partial(_report_of, may_be_planar=job.plane_size is not None)
        return self._ask(job.uri, Stage.DECODE, partial(self._try, message, buffer.handle, job_seconds(job), parse))

    def close(self) -> None:
        """Kill the child, if there is one. A later job starts another."""
        self._process.close()

    def _info_of(self, reply: dict[str, Any]) -> MediaInfo:
        info = _INFO.validate_python(reply["info"])
        most_pixels = max(self._limits.max_image_pixels, self._limits.max_video_pixels)
        has_frames = 0 < info.num_frames <= self._limits.max_video_frames
        if not (has_frames and min(info.width, info.height) > 0 and info.width * info.height <= most_pixels):
            found = f"{info.num_frames} frames of {info.width}x{info.height}"
            raise ProtocolError(f"expected a medium within the limits, found {found}")
        return info

    def _ask(self, uri: str, stage: Stage, attempt: Callable[[str, Stage], _Answer]) -> _Answer:
        """Try a job, and once more where the decoder crashed; refuse a medium that has ended two decoders."""
        if self._attempts is None:
            return attempt(uri, stage)
        while True:
            with self._attempts.turn(uri, stage):
                try:
                    return attempt(uri, stage)
                except MediaError as error:
                    if self._process.pid is not None:  # it lives: an error of the medium
                        raise
                    num_deaths = self._attempts.record(Death(uri=uri, code=error.code, message=error.message))
                    if error.code is ErrorCode.DECODER_TIMEOUT or num_deaths >= MAX_DEATHS:
                        raise

    def _try(
        self,
        message: dict[str, Any],
        handle: int | None,
        video_seconds: float,
        parse: Callable[[dict[str, Any]], _Answer],
        uri: str,
        stage: Stage,
    ) -> _Answer:
        """Send a job and wait for its answer until its deadline."""
        channel = self._process.living_channel()
        allowed_seconds = self._decode.timeout_seconds + self._decode.timeout_per_video_second * video_seconds
        start_seconds = time.monotonic()
        try:
            channel.settimeout(allowed_seconds)
            send_message(channel, message, handle)
            reply = receive_answer(channel, start_seconds + allowed_seconds)
            if stage is Stage.PROBE and "file_bytes" in reply:
                allowed_seconds += self._probe_seconds(int(reply["file_bytes"]))
                reply = receive_answer(channel, start_seconds + allowed_seconds)
            answer = _error_of(reply, stage) or parse(reply)
        except TimeoutError:
            self._process.end(at_once=True)
            raise MediaError(
                ErrorCode.DECODER_TIMEOUT,
                f"{uri}: expected an answer within {allowed_seconds:.1f} s, the decoder process was killed",
                stage,
            ) from None
        except (EOFError, OSError) as error:
            raise MediaError(
                ErrorCode.DECODER_CRASHED,
                f"{uri}: the decoder process died ({self._process.end(at_once=False)})",
                stage,
            ) from error
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            self._process.end(at_once=True)
            raise MediaError(
                ErrorCode.DECODER_CRASHED,
                f"{uri}: the decoder process gave no answer of the protocol and was killed: {error}",
                stage,
            ) from error
        except BaseException:
            self.close()  # an interrupt must not leave an answer behind for the next job
            raise
        if isinstance(answer, MediaError):
            raise answer
        return answer

    def _probe_seconds(self, file_bytes: int) -> float:
        num_bytes = min(max(file_bytes, 0), self._limits.max_file_bytes)
        return num_bytes / _BYTES_PER_VIDEO_SECOND * self._decode.timeout_per_video_second


def _report_of(reply: dict[str, Any], *, may_be_planar: bool) -> ClipReport:
    report = _REPORT.validate_python(reply["report"])
    if report.is_planar and not may_be_planar:
        raise ProtocolError("expected patch rows, found planes")
    return report


def _name_of(reply: dict[str, Any]) -> str:
    name = str(reply["name"])
    if not _NAME.fullmatch(name):
        raise ProtocolError(f"expected a content's name, got {name[:80]!r}")
    return name


def _error_of(reply: dict[str, Any], stage: Stage) -> MediaError | None:
    return MediaError(ErrorCode(reply["code"]), str(reply["message"]), stage) if "code" in reply else None


def job_seconds(job: ClipJob) -> float:
    """Seconds of video up to a job's last wanted frame, as its deadline counts them."""
    return (job.frame_indices[-1] + 1) / _FRAMES_PER_SECOND


def _num_bytes(job: ClipJob) -> int:
    """What a clip may take of a buffer."""
    t, h, w = grid_of(job.media_type, len(job.frame_indices), job.resized_height, job.resized_width)
    num_bytes = t * h * w * row_bytes(job.media_type)
    return num_bytes if job.plane_size is None else max(num_bytes, planes_bytes(t, *job.plane_size))
