"""Every error that Patchwire raises on purpose, as one tree.

    PatchwireError
    ├── UsageError            the command or the config is wrong            exit 2
    │   └── ConfigError       an unknown key, a value out of range
    ├── ModelError            the checkpoint cannot serve                   exit 1
    ├── RequestError          a request buffer contradicts its own layout   exit 1
    ├── OutputError           the output folder cannot take this run        exit 1
    │   ├── OutputBusyError       another run holds it
    │   └── OutputMismatchError   it was made with another config or model
    ├── RunError              the run as a whole stopped                    exit 1
    └── MediaError            one medium or one clip is bad                 one error row

Only `MediaError` is ever turned into a row; every other kind stops the run. All of them survive
pickling, because Ray carries them from worker to driver.
"""

from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """Where in the flow a medium failed."""

    LIST = "list"
    PROBE = "probe"
    PLAN = "plan"
    DECODE = "decode"
    ENCODE = "encode"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What an error code means and what a person can do about it."""

    meaning: str
    action: str
    retryable: bool


class ErrorCode(StrEnum):
    """The closed set of codes an error row can carry."""

    UNREADABLE = "unreadable"
    NOT_A_FILE = "not_a_file"
    OUTSIDE_ROOT = "outside_root"
    UNSUPPORTED_MEDIA = "unsupported_media"
    NO_VIDEO_STREAM = "no_video_stream"
    CORRUPT_MEDIA = "corrupt_media"
    TRUNCATED_MEDIA = "truncated_media"
    ASPECT_RATIO = "aspect_ratio"
    EMPTY_SPAN = "empty_span"
    LIMIT_EXCEEDED = "limit_exceeded"
    CHANGED_MEDIA = "changed_media"
    DECODER_TIMEOUT = "decoder_timeout"
    DECODER_CRASHED = "decoder_crashed"

    @property
    def advice(self) -> Advice:
        """The sentence and the next step for this code."""
        return _ADVICE[self]


_ADVICE: dict[ErrorCode, Advice] = {
    ErrorCode.UNREADABLE: Advice(
        meaning="The file could not be opened or read.",
        action="Check that it exists and that this user may read it, then run the command again.",
        retryable=True,
    ),
    ErrorCode.NOT_A_FILE: Advice(
        meaning="The path is a pipe, a socket, a device or a folder, not a regular file.",
        action="Remove it from the sources.",
        retryable=False,
    ),
    ErrorCode.OUTSIDE_ROOT: Advice(
        meaning="The path leaves the folder it was listed from.",
        action="Name the target itself as a source if it is meant.",
        retryable=False,
    ),
    ErrorCode.UNSUPPORTED_MEDIA: Advice(
        meaning="The bytes are neither a video nor an image that Patchwire reads.",
        action="Convert it, or exclude it from the sources.",
        retryable=False,
    ),
    ErrorCode.NO_VIDEO_STREAM: Advice(
        meaning="The container holds no video stream.",
        action="Exclude it from the sources.",
        retryable=False,
    ),
    ErrorCode.CORRUPT_MEDIA: Advice(
        meaning="The decoder rejected the data.",
        action="Fetch or encode the file again.",
        retryable=False,
    ),
    ErrorCode.TRUNCATED_MEDIA: Advice(
        meaning="The file ends before the frames that its header promises.",
        action="Fetch the file again, or ask for the span that exists.",
        retryable=False,
    ),
    ErrorCode.ASPECT_RATIO: Advice(
        meaning="The longer side is more than 200 times the shorter one; the model's recipe refuses that.",
        action="Crop the medium.",
        retryable=False,
    ),
    ErrorCode.EMPTY_SPAN: Advice(
        meaning="No frame lies between the start and the end that were asked for.",
        action="Correct start_seconds and end_seconds in the manifest.",
        retryable=False,
    ),
    ErrorCode.LIMIT_EXCEEDED: Advice(
        meaning="The medium is over one of the limits in the config's `limits` section.",
        action="If the file is trusted, raise the limit that the message names: patchwire retry OUT --set limits.X=Y.",
        retryable=False,
    ),
    ErrorCode.CHANGED_MEDIA: Advice(
        meaning="The file is no longer the one that was planned.",
        action="Run the command again: changed bytes are planned as new content.",
        retryable=True,
    ),
    ErrorCode.DECODER_TIMEOUT: Advice(
        meaning="The decoder was killed at its deadline.",
        action="Try `patchwire retry OUT --lift-quarantine --set decode.timeout_seconds=120`.",
        retryable=True,
    ),
    ErrorCode.DECODER_CRASHED: Advice(
        meaning="The decoder process died on this medium.",
        action="Try `patchwire retry OUT --lift-quarantine --set decode.video=...`; report the file to that decoder's "
        "project.",
        retryable=True,
    ),
}


class PatchwireError(Exception):
    """Root of the tree."""

    exit_code = 1


class UsageError(PatchwireError):
    """The command line or an argument is wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """A config key is unknown or its value is refused."""


class ModelError(PatchwireError):
    """The checkpoint is missing, incomplete or of a family that is not served."""


class RequestError(PatchwireError):
    """A request's buffer contradicts its own layout."""


class OutputError(PatchwireError):
    """The output folder cannot take this run."""


class OutputBusyError(OutputError):
    """Another live run holds the output folder."""


class OutputMismatchError(OutputError):
    """The output folder was made with another config or model."""


class RunError(PatchwireError):
    """The run as a whole stopped."""


class MediaError(PatchwireError):
    """One medium, or one clip of it, is bad: it becomes one error row.

    Args:
        code: one of the closed set.
        message: the medium, what was expected and what came.
        stage: where it failed.
    """

    def __init__(self, code: ErrorCode, message: str, stage: Stage = Stage.DECODE) -> None:
        super().__init__(code, message, stage)
        self.code = code
        self.message = message
        self.stage = stage

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    @property
    def retryable(self) -> bool:
        """Whether the same bytes could succeed on another try."""
        return self.code.advice.retryable
