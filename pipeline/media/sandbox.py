"""Decoding in a process that can be killed: a hang, a crash or a bomb costs one error row.

A thread cannot be stopped and native code can hold the GIL, so the only sure deadline is SIGKILL from
another process. The child is a fresh interpreter (`python -m pipeline.media.worker`), not a fork: it
survives being started from a process full of threads, such as a Ray worker, and runs no `__main__`
again. Starting takes about 1.2 s, most of it torch's import, and happens at the first job and after a
kill. Jobs run one at a time; patch rows cross in shared memory, everything else as JSON.

A deadline is `decode.timeout_seconds` plus `decode.timeout_per_video_second` for each second of video up
to the last wanted frame. A job knows frames, not seconds, and work goes with frames: 24 count as a
second. A probe may have to read the whole file, and is given as long as a second of video a megabyte.

Where deaths are written down (see attempts.py), a medium whose decoder was killed from outside or crashed is tried
once more at once, because it may be innocent; one that ended its decoder twice is refused.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any, Self

import pipeline.media
from pipeline.config import DecodeConfig, ImagesConfig, LimitsConfig
from pipeline.errors import ErrorCode, MediaError, RequestError, RunError, Stage
from pipeline.media.attempts import MAX_DEATHS, Attempts, Death
from pipeline.media.byte_range import ByteRange
from pipeline.media.container import ClipJob, ClipReport, MediaInfo, MediaType
from pipeline.media.grid import grid_of, row_bytes
from pipeline.media.protocol import receive_message, send_message
from pipeline.media.shared_buffer import SharedBuffer

__all__ = ["Sandbox", "SharedBuffer"]

_START_SECONDS = 120.0
_START_TRIES = 3
_FRAMES_PER_SECOND = 24.0
_LAST_WORDS_BYTES = 2_000
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


class Sandbox:
    """Owns one decoder process; use it from one thread at a time, and as a context manager.

    The process starts with the first job, serves many, and is replaced after it was killed or died. Linux
    ends it with the thread that started it, so that it cannot outlive this process: use a lasting thread.
    `attempts` is where deaths are written down; None forgets them.
    """

    def __init__(
        self, decode: DecodeConfig, images: ImagesConfig, limits: LimitsConfig, attempts: Attempts | None = None
    ) -> None:
        self._decode, self._images, self._limits = decode, images, limits
        self._attempts = attempts
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child, None while there is none."""
        return None if self._process is None else self._process.pid

    def probe(self, uri: str, *, byte_range: ByteRange | None = None, with_times: bool = False) -> MediaInfo:
        """Describe a medium from its header and index.

        Args:
            uri: what `open_binary` takes (from another process: not `memory://`).
            byte_range: where a member lies in its shard.
            with_times: find every frame's presentation time too; reads the whole file.
        Raises: MediaError with Stage.PROBE; RunError when no decoder process can be started.
        """
        place = None if byte_range is None else asdict(byte_range)
        message = {"do": "probe", "uri": uri, "byte_range": place, "with_times": with_times}
        reply = self._ask(message, None, 0.0, uri, Stage.PROBE)["info"]
        times = reply["frame_times_seconds"]
        reply["frame_times_seconds"] = None if times is None else tuple(times)
        reply["media_type"] = MediaType(reply["media_type"])
        return MediaInfo(**reply)

    def decode(self, job: ClipJob, buffer: SharedBuffer, offset: int) -> ClipReport:
        """Turn a clip into patch rows at `offset` bytes of a buffer, in the order that patchify.py gives.

        After an error the clip's part of the buffer holds anything; no other part is touched.
        Raises: MediaError with Stage.DECODE; RequestError when the rows would not fit; RunError when no
            decoder process can be started.
        """
        num_bytes = _num_bytes(job)
        if offset < 0 or offset + num_bytes > buffer.num_bytes:
            raise RequestError(
                f"{job.uri}: {num_bytes} bytes of patch rows at offset {offset} do not fit {buffer.num_bytes} bytes"
            )
        message = {"do": "decode", "offset": offset, **asdict(job)}
        video_seconds = (job.frame_indices[-1] + 1) / _FRAMES_PER_SECOND
        return ClipReport(**self._ask(message, buffer.handle, video_seconds, job.uri, Stage.DECODE)["report"])

    def close(self) -> None:
        """Kill the child, if there is one. A later job starts another."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _ask(
        self, message: dict[str, Any], handle: int | None, video_seconds: float, uri: str, stage: Stage
    ) -> dict[str, Any]:
        """Try a job, and once more where the decoder crashed; refuse a medium that has ended two decoders."""
        if self._attempts is None:
            return self._try(message, handle, video_seconds, uri, stage)
        self._attempts.require_allowed(uri, stage)
        while True:
            try:
                return self._try(message, handle, video_seconds, uri, stage)
            except MediaError as error:
                if self._process is not None:  # it lives: an error of the medium
                    raise
                num_deaths = self._attempts.record(Death(uri=uri, code=error.code, message=error.message))
                if error.code is ErrorCode.DECODER_TIMEOUT or num_deaths >= MAX_DEATHS:
                    raise

    def _try(
        self, message: dict[str, Any], handle: int | None, video_seconds: float, uri: str, stage: Stage
    ) -> dict[str, Any]:
        """Send a job and wait for its answer until its deadline."""
        channel = self._living_channel()
        allowed_seconds = self._decode.timeout_seconds + self._decode.timeout_per_video_second * video_seconds
        start_seconds = time.monotonic()
        try:
            channel.settimeout(allowed_seconds)
            send_message(channel, message, handle)
            while True:
                left_seconds = start_seconds + allowed_seconds - time.monotonic()
                channel.settimeout(max(left_seconds, 0.001))
                reply, _ = receive_message(channel)
                if "extend_seconds" not in reply:
                    break
                allowed_seconds += float(reply["extend_seconds"])
        except TimeoutError:
            self.close()
            raise MediaError(
                ErrorCode.DECODER_TIMEOUT,
                f"{uri}: expected an answer within {allowed_seconds:.1f} s, the decoder process was killed",
                stage,
            ) from None
        except (EOFError, OSError) as error:
            raise MediaError(
                ErrorCode.DECODER_CRASHED, f"{uri}: the decoder process died ({self._bury()})", stage
            ) from error
        except BaseException:
            self.close()  # an interrupt must not leave an answer behind for the next job
            raise
        if "code" in reply:
            raise MediaError(ErrorCode(reply["code"]), reply["message"], stage)
        return reply

    def _bury(self) -> str:
        """How the child ended."""
        assert self._process is not None
        try:
            status = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            status = -signal.SIGKILL
        self.close()
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"

    def _living_channel(self) -> socket.socket:
        """The channel to a child that runs, started now if need be: one that died idle is nobody's fault."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        for tries_left in reversed(range(_START_TRIES)):
            if self._channel is None:
                self._start(is_last=not tries_left)
        assert self._channel is not None
        return self._channel

    def _start(self, *, is_last: bool) -> None:
        """Start a child; one that is killed meanwhile (for want of memory, say) says nothing of the next one."""
        with TemporaryFile() as stderr:
            try:
                self._start_once(stderr)
            except (EOFError, OSError) as error:
                ended = self._bury()
                if is_last or ended != signal.SIGKILL.name:
                    raise RunError(f"the decoder process did not start ({ended}): {_last_words(stderr)}") from error
            except BaseException:
                self.close()
                raise

    def _start_once(self, stderr: IO[bytes]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._channel = ours
            self._process = subprocess.Popen(  # noqa: S603  # our own module, in our own interpreter
                [sys.executable, "-P", "-m", "pipeline.media.worker", str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(_import_path())},
                start_new_session=True,  # Ctrl-C is for the run, which then ends its children
            )
        settings = {
            "decode": self._decode.model_dump(mode="json"),
            "images": self._images.model_dump(mode="json"),
            "limits": self._limits.model_dump(mode="json"),
        }
        ours.settimeout(_START_SECONDS)
        send_message(ours, settings)
        receive_message(ours)


def _import_path() -> list[str]:
    """Where the child finds this package, and then everything that this process can import."""
    package = Path(pipeline.media.__file__ or "").resolve().parents[2]
    return [str(package), *(entry for entry in sys.path if entry)]


def _last_words(stderr: IO[bytes]) -> str:
    end = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, end - _LAST_WORDS_BYTES))
    return stderr.read().decode("utf-8", "replace").strip() or "it said nothing"


def _num_bytes(job: ClipJob) -> int:
    t, h, w = grid_of(job.media_type, len(job.frame_indices), job.resized_height, job.resized_width)
    return t * h * w * row_bytes(job.media_type)
