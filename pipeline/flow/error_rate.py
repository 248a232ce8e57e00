"""Stops a run that is going wrong: `errors.max_rate` over the sources after planning, over the clips after that.

Sources are judged as the plan stands, clips by what this run did itself, so that taking a stopped run up again does
not stop it for what failed before. What is finished stays, and so do its error rows.
"""

from pipeline.config import ErrorsConfig
from pipeline.errors import RunError
from pipeline.flow.progress import Progress
from pipeline.sink.errors_report import group_errors
from pipeline.sink.output import OutputFolder


class ErrorRate:
    """Compares counts with the config's limit."""

    def __init__(self, config: ErrorsConfig, folder: OutputFolder) -> None:
        self._config = config
        self._folder = folder

    def check_sources(self, num_failed: int, num_total: int) -> None:
        """Raise RunError where too many sources could not be planned; the plan so far has been written."""
        self._check(num_failed, num_total, "sources")

    def check_clips(self, progress: Progress) -> None:
        """Raise RunError where too many of the clips of this run failed."""
        self._check(progress.failures, progress.done_clips, "clips")

    def _check(self, num_failed: int, num_total: int, what: str) -> None:
        limit = self._config.max_rate
        if limit is None or num_total < self._config.min_clips or num_failed <= limit * num_total:
            return
        worst = group_errors(self._folder)[0]
        raise RunError(
            f"{num_failed} of {num_total} {what} failed: {num_failed / num_total:.1%}, errors.max_rate is {limit:.1%}. "
            f"Most often: {worst.code} ({worst.num_errors} error rows). {worst.meaning} {worst.action}\n"
            f"What is finished is kept: see `patchwire errors {self._folder.uri}`, then run the same command again, "
            "with --set errors.max_rate=null to go on in spite of it"
        )
