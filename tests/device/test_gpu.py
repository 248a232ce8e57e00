"""What only a CUDA device can show: one copy a request, no device sync, and nothing overwritten too early."""

import gc
import threading
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.requests import StandInStore, random_request
from pipeline.config import Config
from pipeline.device.row_queue import RowQueue
from pipeline.device.rows import Frames, TorchRowMaker, colour_lookup, make_row_maker, patch_rows
from pipeline.device.store_mapping import RegisteredStore
from pipeline.device.transfer import HostTransfer, PinnedTransfer, StoreTransfer
from pipeline.media.colour import ColourSpace, colour_tables
from pipeline.media.container import MediaType
from pipeline.request.table import unwrap_request, wrap_request
from pipeline.stages.encode import Encode
from tests.cuda import syncs_forbidden

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MODEL = "random:tiny"


def stage(**encode: object) -> Encode:
    return Encode(Config.from_values({"model": MODEL, "encode": encode}), MODEL)


def vectors_of(encoded: pa.Table) -> np.ndarray:
    dim = encoded["vector_dim"][0].as_py()
    return np.frombuffer(encoded["vectors"][0].as_py(), dtype=np.float32).reshape(-1, dim)


def test_the_encode_stage_runs_with_device_syncs_forbidden() -> None:
    encode = stage()
    requests = [random_request((6, 8, 12), seed=1), random_request((5, 4, 4), media_type=MediaType.IMAGE, seed=2)]
    for request in requests:
        encode(request)
    with syncs_forbidden():
        encoded = [encode(request) for request in requests]
    assert [table["num_device_copies"][0].as_py() for table in encoded] == [1, 1]
    assert [table["transfer"][0].as_py() for table in encoded] == ["ring", "ring"]


@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")
@pytest.mark.parametrize("plane_size", [None, (128, 192), (142, 190)], ids=["rows", "planes", "resized planes"])
@pytest.mark.parametrize("max_patches", [65_536, 100])
def test_the_profiler_counts_one_pinned_copy_in_and_no_device_sync(
    max_patches: int, plane_size: tuple[int, int] | None
) -> None:
    encode = stage(max_patches=max_patches)
    requests = [random_request((6, 8, 12), (3, 8, 12), seed=seed, plane_size=plane_size) for seed in range(4)]
    encode(requests[0])
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        for request in requests:
            encode(request)
    names = Counter(event.name for event in trace.events())
    copies_in = {name: count for name, count in names.items() if "Memcpy HtoD" in name}
    assert copies_in == {"Memcpy HtoD (Pinned -> Device)": len(requests)}
    assert sum(count for name, count in names.items() if "Memcpy DtoH" in name) == len(requests)
    # The profiler itself waits for the device when it stops.
    assert names["cudaDeviceSynchronize"] <= 1
    assert names["cudaStreamSynchronize"] == 0


def test_a_slot_is_not_filled_again_before_its_copy_has_been_read() -> None:
    device = torch.device("cuda")
    transfer = PinnedTransfer(device, num_slots=2)
    requests = [unwrap_request(random_request((4, 8, 8), seed=seed)) for seed in range(8)]
    arrived = []
    for request in requests:
        # Each copy waits behind about 20 ms of work on its own stream, so slots come round while still in use.
        with torch.cuda.stream(transfer._stream):
            torch.cuda._sleep(40_000_000)
        arrived.append(transfer(request))
    for request, there in zip(requests, arrived, strict=True):
        assert np.array_equal(there.join().cpu().numpy(), request.buffer)


def test_a_ring_that_ignores_its_event_is_caught_by_that_check(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    transfer = PinnedTransfer(device, num_slots=1)
    monkeypatch.setattr(torch.cuda.Event, "synchronize", lambda self: None)
    requests = [unwrap_request(random_request((4, 8, 8), seed=seed)) for seed in range(4)]
    arrived = []
    for request in requests:
        with torch.cuda.stream(transfer._stream):
            torch.cuda._sleep(40_000_000)
        arrived.append(transfer(request).buffer)
    monkeypatch.undo()
    torch.cuda.synchronize()
    equal = [
        np.array_equal(buffer.cpu().numpy(), request.buffer) for request, buffer in zip(requests, arrived, strict=True)
    ]
    assert not all(equal)


def test_planes_are_encoded_with_device_syncs_forbidden_and_one_copy() -> None:
    encode = stage()
    requests = [random_request((6, 8, 12), (2, 8, 12), seed=seed, plane_size=(142, 190)) for seed in range(4)]
    encode(requests[0])
    with syncs_forbidden():
        encoded = [encode(request) for request in requests]
    assert [table["num_device_copies"][0].as_py() for table in encoded] == [1] * 4


@pytest.mark.parametrize("plane_size", [(128, 192), (142, 190), (64, 96), (200, 160)], ids=str)
def test_vectors_of_planes_are_those_of_their_rows(plane_size: tuple[int, int]) -> None:
    encode, grids = stage(), [(6, 8, 12), (3, 8, 12)]
    table = random_request(*grids, seed=3, plane_size=plane_size)
    planar = unwrap_request(table)
    rows, _ = RowQueue(torch.device("cpu")).of_request(HostTransfer()(planar), planar.meta.layout)
    plain = random_request(*grids)
    buffer = unwrap_request(plain).buffer.copy()
    buffer[-rows.numel() :] = rows.numpy().ravel()
    expected = encode(wrap_request(unwrap_request(plain).meta, buffer))
    assert encode(table)["vectors"] == expected["vectors"]


def test_requests_of_planes_side_by_side_have_the_vectors_that_they_have_alone() -> None:
    encode = stage()
    requests = [random_request((6, 8, 12), seed=seed, plane_size=(142, 190)) for seed in range(6)]
    alone = [encode(request)["vectors"] for request in requests]
    with ThreadPoolExecutor(3) as pool:
        together = [table["vectors"] for table in pool.map(encode, requests * 4)]
    assert together == alone * 4


@pytest.mark.parametrize("takes_turns", [False, True], ids=["in a row", "NV12"])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (720, 1280), (1080, 1920), (144, 176), (62, 98)])
def test_tritons_rows_are_plain_torchs(height: int, width: int, takes_turns: bool) -> None:
    device = torch.device("cuda")
    tables = colour_tables(ColourSpace(pixel_format="yuv420p", matrix=1, colour_range=1))
    assert tables is not None
    frames = Frames(
        planes=torch.randint(0, 256, (3, height * width * 3 // 2), dtype=torch.uint8).to(device),
        height=height,
        width=width,
        tables=colour_lookup(tables, device),
        takes_turns=takes_turns,
    )
    maker = make_row_maker(device)
    assert not isinstance(maker, TorchRowMaker)
    for size in [(32, 64), (256, 448), (704, 1280)]:
        shape = 3 * size[0] * size[1] // 256, 1536
        ours, plain = (torch.zeros(shape, dtype=torch.uint8, device=device) for _ in range(2))
        for rows, by in ((ours, maker), (plain, TorchRowMaker())):
            patch_rows(frames, [0, 1, 1, 2, 2], rows, *size, by)
        assert torch.equal(ours, plain)


def test_vectors_on_cuda_are_within_bf16_of_the_cpu() -> None:
    request = random_request((6, 8, 12), seed=5)
    exact = vectors_of(stage(device="cpu")(request))
    assert vectors_of(stage(device="cuda", dtype="float32")(request)) == pytest.approx(exact, abs=2e-5)
    rounded = vectors_of(stage(device="cuda")(request))
    assert np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 2e-2


def test_two_threads_encode_their_own_requests() -> None:
    encode = stage()
    requests = [random_request((6, 8, 12), seed=seed) for seed in range(12)]
    expected = [vectors_of(encode(request)) for request in requests]
    found: dict[int, np.ndarray] = {}

    def work(start: int) -> None:
        for place in range(start, len(requests), 2):
            found[place] = vectors_of(encode(requests[place]))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, vector in enumerate(expected):
        assert np.array_equal(found[place], vector)


@pytest.fixture
def store() -> Iterator[StandInStore]:
    yield StandInStore(num_bytes=8 << 20)


def store_transfer() -> StoreTransfer:
    device = torch.device("cuda")
    return StoreTransfer(device, RegisteredStore(device), PinnedTransfer(device, num_slots=2))


def delay(transfer: StoreTransfer | PinnedTransfer) -> None:
    """Let what comes next on the copy stream wait some 20 ms."""
    with torch.cuda.stream(transfer._stream):
        torch.cuda._sleep(40_000_000)


def test_a_request_in_the_store_is_copied_from_where_it_lies(store: StandInStore) -> None:
    transfer = store_transfer()
    request = unwrap_request(store.request((4, 8, 8), seed=1))
    with syncs_forbidden():
        transfer(request)
        arrived = transfer(request)
    assert (arrived.way, arrived.num_copies) == ("registered", 1)
    assert np.array_equal(arrived.join().cpu().numpy(), request.buffer)
    transfer._store.close()


def test_a_request_elsewhere_goes_through_the_ring(store: StandInStore) -> None:
    transfer = store_transfer()
    transfer(unwrap_request(store.request((4, 8, 8))))
    request = unwrap_request(random_request((4, 8, 8), seed=2))
    arrived = transfer(request)
    assert arrived.way == "ring"
    assert np.array_equal(arrived.join().cpu().numpy(), request.buffer)
    transfer._store.close()


def test_a_store_that_cannot_be_registered_is_left_to_the_ring(store: StandInStore) -> None:
    device = torch.device("cuda")
    transfer = StoreTransfer(device, RegisteredStore(device, max_bytes=1000), PinnedTransfer(device, num_slots=2))
    request = unwrap_request(store.request((4, 8, 8)))
    assert [transfer(request).way for _ in range(2)] == ["ring", "ring"]


def test_a_store_that_is_registered_already_serves_and_leaves_no_error(store: StandInStore) -> None:
    first, second = store_transfer(), store_transfer()
    request = unwrap_request(store.request((4, 8, 8)))
    assert [transfer(request).way for transfer in (first, second)] == ["registered", "registered"]
    assert torch.ones(3, device="cuda").sum().item() == 3
    torch.cuda.synchronize()
    first._store.close()


def test_the_request_is_held_until_its_copy_has_completed_and_no_longer(store: StandInStore) -> None:
    transfer = store_transfer()
    transfer(unwrap_request(store.request((4, 8, 8))))
    torch.cuda.synchronize()
    request = unwrap_request(store.request((4, 8, 8), seed=3))
    held = weakref.ref(request.buffer)
    delay(transfer)
    arrived = transfer(request)
    expected = request.buffer.copy()
    del request
    gc.collect()
    assert held() is not None, "let go while the copy engine was still to read it"
    torch.cuda.synchronize()
    transfer.reap()
    gc.collect()
    assert held() is None, "held after the copy"
    assert np.array_equal(arrived.join().cpu().numpy(), expected)
    transfer._store.close()


def test_memory_given_back_too_early_is_caught_by_the_bytes_that_arrive(store: StandInStore) -> None:
    transfer = store_transfer()
    transfer(unwrap_request(store.request((4, 8, 8))))
    torch.cuda.synchronize()
    request = unwrap_request(store.request((4, 8, 8), seed=4))
    expected = request.buffer.copy()
    delay(transfer)
    arrived = transfer(request)
    transfer._under_way.clear()
    store.request((4, 8, 8), seed=5)
    assert not np.array_equal(arrived.join().cpu().numpy(), expected)
    transfer._store.close()


@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")
@pytest.mark.parametrize("output", [{}, {"level": "token", "deepstack": True}], ids=["clip", "token"])
@pytest.mark.parametrize("way", ["registered", "ring"])
def test_a_request_is_one_copy_in_and_one_wait(store: StandInStore, way: str, output: dict) -> None:
    encode = Encode(Config.from_values({"model": MODEL, "output": output}), MODEL)
    grid = (24, 8, 12)
    request = store.request(grid, seed=1) if way == "registered" else random_request(grid, seed=1)
    num_bytes = unwrap_request(request).buffer.size
    for _ in range(2):
        expected = vectors_of(encode(request))
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], record_shapes=True) as trace:
        encoded = [encode(request) for _ in range(4)]
    names = Counter(event.name for event in trace.events())
    whole = sum(event.name == "aten::copy_" and event.input_shapes[0] == [num_bytes] for event in trace.events())
    assert {table["transfer"][0].as_py() for table in encoded} == {way}
    assert whole == 4 * (1 if way == "registered" else 2), "the transfer, and where it is not registered the slot"
    assert {name: count for name, count in names.items() if "Memcpy HtoD" in name} == {
        "Memcpy HtoD (Pinned -> Device)": 4
    }
    assert sum(count for name, count in names.items() if "Memcpy DtoH" in name) == 4 * (2 if output else 1)
    waits = {name: count for name, count in names.items() if "Synchronize" in name or name == "cudaMemcpy"}
    assert waits.pop("cudaDeviceSynchronize", 0) <= 1, "the profiler's own"
    assert waits == {"cudaEventSynchronize": 4}, "for the results"
    assert all(np.array_equal(vectors_of(table), expected) for table in encoded)
    if way == "registered":
        encode._transfer._store.close()


@pytest.mark.parametrize("way", ["registered", "ring"])
def test_python_and_arrow_hold_no_copy_of_the_pixels(store: StandInStore, way: str) -> None:
    encode, grid = stage(), (24, 8, 12)
    request = store.request(grid, seed=1) if way == "registered" else random_request(grid, seed=1)
    for _ in range(2):
        encode(request)
    tracemalloc.start()
    in_arrow = pa.total_allocated_bytes()
    encode(request)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < unwrap_request(request).buffer.size / 4
    assert pa.total_allocated_bytes() - in_arrow < unwrap_request(request).buffer.size / 4
    if way == "registered":
        encode._transfer._store.close()


def test_copy_in_kernels_and_result_have_streams_of_their_own(store: StandInStore) -> None:
    encode = stage()
    request = store.request((6, 8, 12), seed=1)
    for _ in range(2):  # the second one records a graph, on a stream of its own
        encode(request)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        encode(request)
    streams: dict[str, set[int]] = {}
    for event in trace.events():
        if event.device_type == DeviceType.CUDA:
            kind = next((kind for kind in ("HtoD", "DtoH", "DtoD", "Memset") if kind in event.name), "kernel")
            streams.setdefault(kind, set()).add(event.device_resource_id)
    assert len(streams["HtoD"]) == len(streams["DtoH"]) == len(streams["kernel"]) == 1
    assert len(streams["HtoD"] | streams["DtoH"] | streams["kernel"]) == 3
    encode._transfer._store.close()


def test_a_request_that_waits_for_its_bytes_does_not_hold_up_the_one_before() -> None:
    transfer = PinnedTransfer(torch.device("cuda"), num_slots=2)
    first, second = (unwrap_request(random_request((4, 8, 8), seed=seed)) for seed in range(2))
    arrived = transfer(first)
    delay(transfer)
    late = transfer(second)
    assert np.array_equal(arrived.join().cpu().numpy(), first.buffer)
    assert late.ready is not None and not late.ready.query()
    assert np.array_equal(late.join().cpu().numpy(), second.buffer)
