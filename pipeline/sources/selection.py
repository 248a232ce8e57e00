"""Which names found in a folder count, as the `sources` section says; the same rule on disks and in object stores."""

import fnmatch
from dataclasses import dataclass

from pipeline.config import SourcesConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The `include`, `exclude` and `hidden` settings as a rule on names.

    Patterns are matched against a file's own name, with case. A name that begins with a dot is hidden, and so is
    everything in a hidden folder. What is named directly is taken whatever its name.
    """

    include: tuple[str, ...]
    exclude: tuple[str, ...]
    hidden: bool

    @classmethod
    def of(cls, config: SourcesConfig) -> "Selection":
        """Take the rule out of the config."""
        return cls(include=config.include, exclude=config.exclude, hidden=config.hidden)

    def takes_file(self, name: str) -> bool:
        """Whether a file of this name in a folder counts."""
        return self.enters(name) and _fits(name, self.include) and not _fits(name, self.exclude)

    def enters(self, name: str) -> bool:
        """Whether a folder of this name is looked into."""
        return self.hidden or not name.startswith(".")


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
