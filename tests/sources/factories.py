"""Small trees of files to list."""

import os
from pathlib import Path

from pipeline.config import SourcesConfig
from pipeline.sources.items import SourceFailure
from pipeline.sources.listing import Listing, list_sources


def make_file(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def list_with(*specs: Path | str, **settings: object) -> Listing:
    return list_sources([str(spec) for spec in specs], SourcesConfig.model_validate(settings))


def uris_of(listing: Listing) -> list[str]:
    return [item.uri for item in listing.items]


def only_failure(listing: Listing) -> SourceFailure:
    [failure] = listing.failures
    return failure


def make_bytes_file(folder: Path, name: bytes) -> bytes:
    path = folder / os.fsdecode(name)
    path.write_bytes(b"x")
    return os.fsencode(path)
