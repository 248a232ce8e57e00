"""NVDEC's own library by ctypes: parsing packets, decoding pictures, mapping the wanted ones.

Why not PyNvVideoCodec: it maps and copies every decoded frame, where a dozen are decoded for one that is wanted; it
brings an FFmpeg of its own beside PyAV's; and it demuxes, and so numbers frames, in its own way. The library itself
comes with the driver (in a container: NVIDIA_DRIVER_CAPABILITIES must name `video`).
Source: Video Codec SDK, cuviddec.h and nvcuvid.h; the structures have kept their layout since version 9.
"""

import ctypes
from typing import Any

from pipeline.device.nvdec.driver import DriverError, load_library

END_OF_STREAM, HAS_TIMESTAMP, END_OF_PICTURE = 0x01, 0x02, 0x08
CODECS = {"h264": 4, "hevc": 8}  # cudaVideoCodec, by FFmpeg's names
CHROMA_420 = 1
BAD_STATUSES = (8, 9)  # cuvidDecodeStatus: Error, Error_Concealed
_LIBRARY = "libnvcuvid.so.1"


class _Area(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int) for name in ("left", "top", "right", "bottom"))


class _ShortArea(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_short) for name in ("left", "top", "right", "bottom"))


class VideoFormat(ctypes.Structure):
    """CUVIDEOFORMAT."""

    _fields_ = (
        ("codec", ctypes.c_int),
        ("frame_rate", ctypes.c_uint * 2),
        ("progressive_sequence", ctypes.c_ubyte),
        ("bit_depth_luma_minus8", ctypes.c_ubyte),
        ("bit_depth_chroma_minus8", ctypes.c_ubyte),
        ("min_num_decode_surfaces", ctypes.c_ubyte),
        ("coded_width", ctypes.c_uint),
        ("coded_height", ctypes.c_uint),
        ("display_area", _Area),
        ("chroma_format", ctypes.c_int),
        ("bitrate", ctypes.c_uint),
        ("display_aspect_ratio", ctypes.c_int * 2),
        ("video_signal_description", ctypes.c_ubyte * 4),
        ("seqhdr_data_length", ctypes.c_uint),
    )


class DisplayInfo(ctypes.Structure):
    """CUVIDPARSERDISPINFO."""

    _fields_ = (
        ("picture_index", ctypes.c_int),
        ("progressive_frame", ctypes.c_int),
        ("top_field_first", ctypes.c_int),
        ("repeat_first_field", ctypes.c_int),
        ("timestamp", ctypes.c_longlong),
    )


class PictureParams(ctypes.Structure):
    """The beginning of CUVIDPICPARAMS, which the parser makes and the decoder takes."""

    _fields_ = (
        ("width_in_blocks", ctypes.c_int),
        ("height_in_blocks", ctypes.c_int),
        ("picture_index", ctypes.c_int),
        ("field_pic_flag", ctypes.c_int),
        ("bottom_field_flag", ctypes.c_int),
        ("second_field", ctypes.c_int),
        ("num_bytes", ctypes.c_uint),
        ("data", ctypes.c_void_p),
        ("num_slices", ctypes.c_uint),
        ("slice_offsets", ctypes.c_void_p),
        ("ref_pic_flag", ctypes.c_int),
        ("intra_pic_flag", ctypes.c_int),
    )


class SourcePacket(ctypes.Structure):
    """CUVIDSOURCEDATAPACKET."""

    _fields_ = (
        ("flags", ctypes.c_ulong),
        ("payload_size", ctypes.c_ulong),
        ("payload", ctypes.c_char_p),
        ("timestamp", ctypes.c_longlong),
    )


SequenceCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(VideoFormat))
DecodeCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(PictureParams))
DisplayCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(DisplayInfo))


class ParserParams(ctypes.Structure):
    """CUVIDPARSERPARAMS."""

    _fields_ = (
        ("codec", ctypes.c_int),
        ("max_num_decode_surfaces", ctypes.c_uint),
        ("clock_rate", ctypes.c_uint),
        ("error_threshold", ctypes.c_uint),
        ("max_display_delay", ctypes.c_uint),
        ("reserved1", ctypes.c_uint * 5),
        ("user_data", ctypes.c_void_p),
        ("on_sequence", SequenceCallback),
        ("on_decode", DecodeCallback),
        ("on_display", DisplayCallback),
        ("reserved2", ctypes.c_void_p * 7),
        ("extended_format", ctypes.c_void_p),
    )


class CreateInfo(ctypes.Structure):
    """CUVIDDECODECREATEINFO."""

    _fields_ = (
        ("width", ctypes.c_ulong),
        ("height", ctypes.c_ulong),
        ("num_decode_surfaces", ctypes.c_ulong),
        ("codec", ctypes.c_int),
        ("chroma_format", ctypes.c_int),
        ("creation_flags", ctypes.c_ulong),
        ("bit_depth_minus8", ctypes.c_ulong),
        ("intra_decode_only", ctypes.c_ulong),
        ("max_width", ctypes.c_ulong),
        ("max_height", ctypes.c_ulong),
        ("reserved1", ctypes.c_ulong),
        ("display_area", _ShortArea),
        ("output_format", ctypes.c_int),
        ("deinterlace_mode", ctypes.c_int),
        ("target_width", ctypes.c_ulong),
        ("target_height", ctypes.c_ulong),
        ("num_output_surfaces", ctypes.c_ulong),
        ("context_lock", ctypes.c_void_p),
        ("target_area", _ShortArea),
        ("reserved2", ctypes.c_ulong * 5),
    )


class ProcessingParams(ctypes.Structure):
    """CUVIDPROCPARAMS."""

    _fields_ = (
        ("progressive_frame", ctypes.c_int),
        ("second_field", ctypes.c_int),
        ("top_field_first", ctypes.c_int),
        ("unpaired_field", ctypes.c_int),
        ("reserved_flags", ctypes.c_uint),
        ("reserved_zero", ctypes.c_uint),
        ("raw_input_address", ctypes.c_ulonglong),
        ("raw_input_pitch", ctypes.c_uint),
        ("raw_input_format", ctypes.c_uint),
        ("raw_output_address", ctypes.c_ulonglong),
        ("raw_output_pitch", ctypes.c_uint),
        ("reserved1", ctypes.c_uint),
        ("output_stream", ctypes.c_void_p),
        ("reserved2", ctypes.c_uint * 46),
        ("reserved3", ctypes.c_void_p * 2),
    )


class DecodeStatus(ctypes.Structure):
    """CUVIDGETDECODESTATUS."""

    _fields_ = (("status", ctypes.c_int), ("reserved1", ctypes.c_uint * 31), ("reserved2", ctypes.c_void_p * 8))


class Cuvid:
    """The library. Raises: DriverError where it is missing."""

    def __init__(self) -> None:
        self._library = load_library(_LIBRARY)

    def call(self, name: str, *arguments: Any) -> None:
        """Make one call, with ctypes' own types. Raises: DriverError unless it succeeds."""
        status = getattr(self._library, name)(*arguments)
        if status:
            raise DriverError(f"{name}: CUDA error {status}")

    def picture_status(self, decoder: ctypes.c_void_p, picture_index: int) -> int | None:
        """How the last decoding into a surface went; None where the hardware does not tell."""
        found = DecodeStatus()
        if self._library.cuvidGetDecodeStatus(decoder, ctypes.c_int(picture_index), ctypes.byref(found)):
            return None
        return int(found.status)
