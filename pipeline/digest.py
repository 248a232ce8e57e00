"""Stable names for things: every id in Patchwire is a hash of plain values or of bytes.

BLAKE2b from the standard library: as fast as a disk reads, and no dependency. Ids are 128 bits,
written as 32 hex digits, so a billion clips collide with a chance below 1e-20.
"""

import hashlib
import json
from collections.abc import Iterable

DIGEST_BYTES = 16


def digest_bytes(chunks: Iterable[bytes]) -> str:
    """Hash a stream of byte chunks to 32 hex digits."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def digest_values(*values: object) -> str:
    """Hash plain values (None, bool, int, float, str, and lists and dicts of them) to 32 hex digits.

    The values are written as canonical JSON, so the same values give the same id in every process
    and on every machine. Raises TypeError for anything JSON cannot hold.
    """
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return digest_bytes([text.encode("ascii")])
