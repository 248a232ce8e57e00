"""What happens to a clip when its decoder hangs, dies, or is asked for too much; and to the next one."""

import gc
import os
import signal
import socket
import struct
import threading
import time
import weakref
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.config import DecodeConfig, ImagesConfig, LimitsConfig
from pipeline.errors import ErrorCode, MediaError, RequestError, Stage
from pipeline.media.container import MediaType
from pipeline.media.protocol import ProtocolError
from pipeline.media.sandbox import Sandbox, SharedBuffer
from pipeline.media.shared_buffer import MOST_KEPT_BYTES, BufferPool, BufferWriter
from tests.media.helpers import evenly, make_job, probe, rows_of
from tests.media_factory import make_animation, make_image, make_video


def make_sandbox(**limits):
    decode = DecodeConfig(timeout_seconds=limits.pop("timeout_seconds", 20))
    return Sandbox(decode, ImagesConfig(), LimitsConfig(**limits))


def has_ended(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def wait_until(condition):
    for _ in range(300):
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_sandbox_probes_and_decodes_what_the_libraries_do_here(made, sandbox):
    for wishes in ({}, {"with_times": True}, {"with_keyframes": True}):
        assert sandbox.probe(str(made("h264.mp4")), **wishes) == probe(made("h264.mp4"), **wishes)
    job = make_job(made("h264.mp4"), probe(made("h264.mp4")), [0, 5, 9])
    buffer = SharedBuffer(2 * 24 * 1536)
    report = sandbox.decode(job, buffer, 0)
    assert (report.backend, report.num_bytes) == ("pyav", 2 * 24 * 1536)
    assert report.decode_seconds > 0


def test_decord_serves_where_it_is_named(made):
    job = make_job(made("h264.mp4"), probe(made("h264.mp4")), [0, 5])
    with Sandbox(DecodeConfig(video="decord"), ImagesConfig(), LimitsConfig()) as box, make_sandbox() as other:
        buffer = SharedBuffer(24 * 1536)
        assert box.decode(job, buffer, 0).backend == "decord"
        assert np.array_equal(np.frombuffer(buffer.memory, np.uint8).reshape(24, -1), rows_of(other, job))


def test_hung_decoder_is_killed_at_its_deadline_and_the_next_clip_is_served(made):
    with make_sandbox(timeout_seconds=1) as box:
        uri = str(made("h264.mp4"))
        box.probe(uri)
        hung = box.pid
        os.kill(hung, signal.SIGSTOP)
        with pytest.raises(MediaError, match=r"h264\.mp4.*killed") as caught:
            box.probe(uri)
        assert (caught.value.code, caught.value.stage) == (ErrorCode.DECODER_TIMEOUT, Stage.PROBE)
        assert has_ended(hung)
        assert box.probe(uri).num_frames == 24
        assert box.pid != hung


def test_decoder_that_dies_in_a_clip_costs_that_clip_only(made):
    job = make_job(made("h264.mp4"), probe(made("h264.mp4")), [0, 9])
    with make_sandbox() as box:
        expected = rows_of(box, job)
        os.kill(box.pid, signal.SIGSTOP)  # so that it cannot finish before it is killed
        threading.Timer(0.3, os.kill, (box.pid, signal.SIGKILL)).start()
        with pytest.raises(MediaError, match="SIGKILL") as caught:
            rows_of(box, job)
        assert (caught.value.code, caught.value.stage) == (ErrorCode.DECODER_CRASHED, Stage.DECODE)
        assert np.array_equal(rows_of(box, job), expected)


def test_decoder_that_died_idle_is_replaced_without_an_error(made):
    with make_sandbox() as box:
        box.probe(str(made("h264.mp4")))
        os.kill(box.pid, signal.SIGKILL)
        assert wait_until(lambda: has_ended(box.pid))
        assert box.probe(str(made("h264.mp4"))).num_frames == 24


def test_clip_that_needs_too_much_memory_is_an_error_and_the_next_one_is_served(tmp_path):
    large = tmp_path / "large.png"
    Image.new("RGB", (5000, 5000)).save(large)
    small = make_image(tmp_path / "small.png")
    with make_sandbox(max_decoder_bytes=40 << 20) as box:
        with pytest.raises(MediaError, match=r"large\.png") as caught:
            rows_of(box, make_job(large, probe(large), [0]))
        assert caught.value.code is ErrorCode.LIMIT_EXCEEDED
        assert rows_of(box, make_job(small, probe(small), [0])).shape == (24, 768)


def test_rows_are_written_at_their_offset_and_nowhere_else(made, sandbox):
    job = make_job(made("h264.mp4"), probe(made("h264.mp4")), [2, 3])
    buffer = SharedBuffer(5_000 + 24 * 1536 + 100)
    buffer.memory[:] = b"\xab" * buffer.num_bytes
    sandbox.decode(job, buffer, 5_000)
    whole = np.frombuffer(buffer.memory, np.uint8)
    assert (whole[:5_000] == 0xAB).all()
    assert (whole[-100:] == 0xAB).all()
    assert np.array_equal(whole[5_000:-100].reshape(24, 1536), rows_of(sandbox, job))


def test_rows_that_do_not_fit_are_a_request_error(made, sandbox):
    job = make_job(made("h264.mp4"), probe(made("h264.mp4")), [0, 1])
    with pytest.raises(RequestError, match="do not fit"):
        sandbox.decode(job, SharedBuffer(24 * 1536), 1)


def test_buffer_is_wrapped_by_arrow_without_a_copy_and_freed_with_its_last_view():
    buffer = SharedBuffer(1000)
    mapping = weakref.ref(buffer.memory.obj)
    wrapped = pa.py_buffer(buffer.memory)
    assert wrapped.address == np.frombuffer(buffer.memory, np.uint8).ctypes.data
    del buffer
    gc.collect()
    assert mapping() is not None
    del wrapped
    gc.collect()
    assert mapping() is None


def test_pages_of_a_buffer_are_used_again_once_nobody_looks_at_them(made, sandbox):
    first = sandbox.new_buffer(5_000)
    first.memory[:4] = b"mine"
    wrapped, handle = pa.py_buffer(first.memory), first.handle
    del first
    gc.collect()
    second = sandbox.new_buffer(5_000)
    assert second.handle != handle
    second.memory[:4] = b"next"
    assert wrapped.to_pybytes()[:4] == b"mine"
    del wrapped
    gc.collect()
    assert sandbox.new_buffer(4_000).handle == handle
    gc.collect()
    larger = sandbox.new_buffer(50_000)
    assert larger.num_bytes == len(larger.memory) == 50_000
    job = make_job(made("h264.mp4"), probe(made("h264.mp4")), [2, 3])
    sandbox.decode(job, larger, 0)
    again = sandbox.new_buffer(24 * 1536)
    sandbox.decode(job, again, 0)
    assert again.memory == larger.memory[: 24 * 1536]


def test_many_buffers_leave_no_handles_behind():
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        SharedBuffer(4096)
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_fifo_is_refused_at_once(tmp_path, sandbox):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError) as caught:
        sandbox.probe(str(tmp_path / "pipe.mp4"))
    assert (caught.value.code, caught.value.stage) == (ErrorCode.NOT_A_FILE, Stage.PROBE)


def test_file_over_the_byte_limit_is_refused(made):
    with make_sandbox(max_file_bytes=1_000) as box, pytest.raises(MediaError, match="max_file_bytes"):
        box.probe(str(made("h264.mp4")))


def test_media_inside_another_filesystem_are_read(tmp_path, made, sandbox):
    import zipfile

    with zipfile.ZipFile(tmp_path / "media.zip", "w") as archive:
        archive.write(made("h264.mp4"), "a.mp4")
    uri = f"zip://a.mp4::file://{tmp_path}/media.zip"
    assert sandbox.probe(uri).num_frames == 24
    job = make_job(uri, probe(made("h264.mp4")), [0, 20])
    assert np.array_equal(
        rows_of(sandbox, job), rows_of(sandbox, make_job(made("h264.mp4"), probe(made("h264.mp4")), [0, 20]))
    )


def test_animation_is_decoded_as_a_video(tmp_path):
    path = make_animation(tmp_path / "a.gif")
    with Sandbox(DecodeConfig(), ImagesConfig(animated="video"), LimitsConfig()) as box:
        info = box.probe(str(path))
        assert info.media_type is MediaType.VIDEO
        assert rows_of(box, make_job(path, info, [0, 1, 4])).shape == (2 * 24, 1536)


@pytest.mark.parametrize(
    "answer",
    [
        b"\xff\xfe{",
        b"7",
        b"[" * 100_000,
        b"{}",
        b'{"code": "no code", "message": ""}',
        b'{"info": {"width": 32}}',
        b'{"info": {"media_type": "video", "width": 32, "height": 32, "num_frames": 10000000000, "fps": 1.0,'
        b' "frame_times_seconds": null, "codec": "h264"}}',
        b'{"file_bytes": Infinity}',
    ],
)
def test_an_answer_that_is_none_ends_the_decoder_and_costs_its_medium_only(monkeypatch, made, answer):
    with make_sandbox() as box:
        box.probe(str(made("h264.mp4")))
        first, (here, there) = box.pid, socket.socketpair()
        with here, there, monkeypatch.context() as patched:
            there.sendall(struct.pack("<I", len(answer)) + answer)
            patched.setattr(box._process, "living_channel", lambda: here)
            with pytest.raises(MediaError) as caught:
                box.probe("/x.mp4")
        assert caught.value.code is ErrorCode.DECODER_CRASHED
        assert has_ended(first)
        assert box.probe(str(made("h264.mp4"))).codec == "h264"


def test_an_answer_that_trickles_in_has_the_deadline_of_the_whole(monkeypatch):
    with Sandbox(DecodeConfig(timeout_seconds=0.5), ImagesConfig(), LimitsConfig()) as box:
        here, there = socket.socketpair()
        with here, there:
            there.sendall(struct.pack("<I", 1000))
            ended = threading.Event()

            def trickle():
                while not ended.wait(0.1):
                    there.sendall(b" ")

            thread = threading.Thread(target=trickle)
            thread.start()
            monkeypatch.setattr(box._process, "living_channel", lambda: here)
            with pytest.raises(MediaError) as caught:
                box.probe("/x.mp4")
            ended.set()
            thread.join()
    assert caught.value.code is ErrorCode.DECODER_TIMEOUT


def test_a_probe_may_put_its_deadline_off_once_and_no_further_than_the_largest_file_needs(monkeypatch):
    decode = DecodeConfig(timeout_seconds=0.2, timeout_per_video_second=0.1)
    with Sandbox(decode, ImagesConfig(), LimitsConfig(max_file_bytes=1_000_000)) as box:
        here, there = socket.socketpair()
        with here, there:
            for _ in range(2):
                body = b'{"file_bytes": 1000000000000}'
                there.sendall(struct.pack("<I", len(body)) + body)
            monkeypatch.setattr(box._process, "living_channel", lambda: here)
            with pytest.raises(MediaError, match="no answer of the protocol"):
                box.probe("/x.mp4")
            with pytest.raises(MediaError, match=r"within 0\.2 s"):
                box.probe("/x.mp4")


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path):
    path = make_video(tmp_path / "long.mp4", num_frames=400, width=320, height=240, options={"preset": "ultrafast"})
    with make_sandbox() as box:
        peaks = []
        for count in (40, 400):
            rows_of(box, make_job(path, probe(path), evenly(400, count), 32, 32))
            status = Path(f"/proc/{box.pid}/status").read_text()
            peaks.append(int(status.split("VmHWM:")[1].split()[0]))
    all_frames_kib = 400 * 320 * 240 * 3 // 1024
    assert peaks[1] - peaks[0] < all_frames_kib / 2


def test_bad_files_end_as_errors_or_results_and_innocent_ones_are_served(sample_media, sandbox):
    outcomes = {}
    for path in sorted((sample_media / "bad").iterdir()):
        try:
            info = sandbox.probe(str(path))
            rows_of(sandbox, make_job(path, info, evenly(info.num_frames, 8)))
            outcomes[path.name] = None
        except MediaError as error:
            outcomes[path.name] = error.code
    served = {name for name, code in outcomes.items() if code is None}
    assert served == {
        "bitflip.jpg",
        "bitflip_mid.mp4",
        "gif_named.mp4",
        "jpeg_named.mp4",
        "noise.mp4",
        "trunc.mkv",
        "trunc_midpacket.ts",
    }
    assert not {ErrorCode.DECODER_TIMEOUT, ErrorCode.DECODER_CRASHED} & set(outcomes.values())
    assert outcomes["bomb_15360x15360.mp4"] is ErrorCode.LIMIT_EXCEEDED
    assert outcomes["bomb_30000x30000.png"] is ErrorCode.LIMIT_EXCEEDED
    assert outcomes["claims_2e9_pixels.png"] is ErrorCode.LIMIT_EXCEEDED
    assert sandbox.probe(str(sample_media / "video" / "one_frame.mp4")).num_frames == 1


def bytes_of(buffer: SharedBuffer, start: int, num_bytes: int) -> bytes:
    return bytes(buffer.memory[start : start + num_bytes])


def fill(writer: BufferWriter, buffer: SharedBuffer, value: int, offset: int) -> None:
    writer.begin(buffer.handle)
    for number, patch in enumerate(writer.patches(offset, 3, (2, 50))):
        assert patch.shape == (2, 50)
        patch[:] = value + number


def test_what_a_buffer_is_given_is_there_the_first_time_and_when_it_comes_again():
    writer, buffer = BufferWriter(), SharedBuffer(10_000)
    for value, offset in ((1, 0), (11, 4096), (21, 700), (31, 9_700)):
        fill(writer, buffer, value, offset)
        assert bytes_of(buffer, offset, 300) == b"".join(bytes([value + number]) * 100 for number in range(3))
        assert not any(bytes_of(buffer, 1_000, 3_000))
    assert writer._mapped is not None


def test_another_buffer_is_never_written_through_the_last_ones_mapping():
    writer, buffers = BufferWriter(), [SharedBuffer(5_000) for _ in range(3)]
    for turn in range(4):
        for number, buffer in enumerate(buffers):
            for _ in range(2):
                fill(writer, buffer, 10 * turn + number, 0)
    assert [buffer.memory[0] for buffer in buffers] == [30, 31, 32]


def test_pages_that_are_given_again_are_written_where_the_parent_looks():
    pool, writer = BufferPool(), BufferWriter()
    for value in (5, 6, 7):
        buffer = SharedBuffer(8_000, pool)
        fill(writer, buffer, value, 100)
        assert bytes_of(buffer, 100, 1) == bytes([value])
        del buffer


def test_a_buffer_larger_than_a_worker_keeps_is_not_mapped():
    writer, buffer = BufferWriter(), SharedBuffer(MOST_KEPT_BYTES + 1)
    for value in (1, 2):
        fill(writer, buffer, value, MOST_KEPT_BYTES - 299)
    assert writer._mapped is None
    assert buffer.memory[MOST_KEPT_BYTES] == 4


def test_without_address_space_a_buffer_is_written_like_a_file(monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    writer, buffer = BufferWriter(), SharedBuffer(1_000)
    monkeypatch.setattr("pipeline.media.shared_buffer.mmap.mmap", refuse)
    for value in (1, 2, 3):
        fill(writer, buffer, value, 0)
    assert buffer.memory[0] == 3


@pytest.mark.parametrize("sides", [(-16, -16), (0, 5), (5, 0)], ids=str)
def test_a_probe_that_tells_of_sides_that_no_picture_has_is_no_answer(made, sandbox, sides):
    info = asdict(probe(made("h264.mp4"))) | dict(zip(("width", "height"), sides, strict=True))
    with pytest.raises(ProtocolError):
        sandbox._info_of({"info": info})
