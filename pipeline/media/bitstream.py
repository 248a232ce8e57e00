"""The few bits of compressed video that decide which packets are frames and where decoding may begin.

A packet is not always a frame: VP8 and VP9 keep hidden reference frames in packets of their own, and a
container counts them. A keyframe flag is not always a place to start: in H.264 a recovery point carries
it too. Both are read from the first bytes of a packet; nothing is decoded.
Sources: RFC 6386 section 9.1 (VP8), VP9 bitstream specification 0.6 section 6.2 and annex B,
ITU-T H.264 table 7-1, ITU-T H.265 table 7-1, ISO/IEC 14496-15 (length-prefixed NAL units).
"""

from collections.abc import Iterator

HIDDEN_FRAME_CODECS = frozenset({"vp8", "vp9"})
# Here a keyframe depends on nothing before it and nothing after it reaches behind it, save leading
# pictures, which the index finds by their timestamps.
_KEYFRAME_RESETS = frozenset({"av1", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9"})
_SCAN_BYTES = 4096
_H264_IDR, _H264_SLICES = 5, range(1, 6)
_HEVC_SLICES, _HEVC_STARTS = range(32), range(16, 22)


def is_shown(codec: str, data: memoryview) -> bool:
    """Whether decoding this packet puts a frame on screen."""
    if codec == "vp8":
        return bool(data[0] & 0x10)
    if codec == "vp9":
        return any(_vp9_is_shown(data[start:]) for start in _vp9_frame_starts(data))
    return True


def _vp9_frame_starts(data: memoryview) -> Iterator[int]:
    """Offsets of the frames in a packet; a superframe lists their sizes at its end."""
    yield 0
    marker = data[-1]
    if marker & 0xE0 != 0xC0:
        return
    num_frames, num_size_bytes = (marker & 7) + 1, ((marker >> 3) & 3) + 1
    index_bytes = 2 + num_frames * num_size_bytes
    if len(data) < index_bytes or data[-index_bytes] != marker:
        return
    sizes = data[-index_bytes + 1 : -1]
    start = 0
    for number in range(num_frames - 1):
        start += int.from_bytes(sizes[number * num_size_bytes : (number + 1) * num_size_bytes], "little")
        if start < len(data) - index_bytes:
            yield start


def _vp9_is_shown(frame: memoryview) -> bool:
    bits = f"{int.from_bytes(frame[:2].tobytes().ljust(2, bytes(1)), 'big'):016b}"
    position = 5 if bits[2:4] == "11" else 4  # profile 3 has a reserved bit
    show_existing_frame, show_frame = bits[position] == "1", bits[position + 2] == "1"
    return show_existing_frame or show_frame


def is_random_access(codec: str, extradata: bytes | None, data: memoryview) -> bool:
    """Whether a packet that is flagged as a keyframe resets the decoder."""
    if codec == "h264":
        kinds = (header & 0x1F for header in _nal_headers(_length_bytes(extradata, 4), data))
        return next((kind == _H264_IDR for kind in kinds if kind in _H264_SLICES), False)
    if codec == "hevc":
        kinds = ((header >> 1) & 0x3F for header in _nal_headers(_length_bytes(extradata, 21), data))
        return next((kind in _HEVC_STARTS for kind in kinds if kind in _HEVC_SLICES), False)
    return codec in _KEYFRAME_RESETS


def _length_bytes(extradata: bytes | None, position: int) -> int:
    """Bytes of the length before each NAL unit, or 0 where start codes separate them (Annex B)."""
    if extradata and len(extradata) > position and extradata[0] == 1:
        return (extradata[position] & 3) + 1
    return 0


def _nal_headers(length_bytes: int, data: memoryview) -> Iterator[int]:
    """The first byte of each NAL unit, as far as it begins within the first few kilobytes."""
    position = 0
    head = data[:_SCAN_BYTES].tobytes()
    while True:
        if length_bytes:
            start = position + length_bytes
            position = start + int.from_bytes(data[position:start], "big")
        else:
            found = head.find(b"\x00\x00\x01", position)
            if found < 0:
                return
            start = position = found + 3
        if start >= len(data):
            return
        yield data[start]
