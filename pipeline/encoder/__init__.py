"""The vision tower and what surrounds it on the device: bytes in, pooled vectors out."""
