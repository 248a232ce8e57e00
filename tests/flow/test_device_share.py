"""Rows that decode actors hand on to the device, through a real Ray; what stands in for the device is the CPU."""

from pathlib import Path

import pytest

from actors.decode import DecodeActor, Decoders
from actors.encode import EncodeActor
from actors.share import ShareDesk
from benchmarks.requests import random_request
from pipeline import Config, embed
from pipeline.flow import cluster
from pipeline.plan.schema import packed_request
from pipeline.request.deferred import deferred_plan
from tests.device.nvdec_factories import make_config, make_plan
from tests.faults.processes import wait_until
from tests.flow.stand_in import EarlyDesk, StandInEncodeActor, StandInRunner
from tests.flow.tables import embeddings_of, errors_of
from tests.media_factory import make_image, make_video

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_node_ray")]


def test_a_decode_actor_defers_while_the_desk_gives_room(tmp_path):
    import ray

    plans = [make_plan(make_video(tmp_path / f"{count}.mp4", num_frames=count)) for count in (4, 5, 6)]
    desk = ShareDesk.start()
    actor = ray.remote(DecodeActor).remote(make_config(), Decoders(), desk)

    def is_deferred(number: int) -> bool:
        table = ray.get(actor.__call__.remote(packed_request(plans[number])))
        return deferred_plan(table) is not None

    def heard() -> None:  # telling is not waited for; calls of one caller come in order
        ray.get(desk._handle.__ray_ready__.remote())

    assert not is_deferred(0)
    desk.open(1)
    heard()
    assert [is_deferred(number) for number in (1, 2)] == [True, False]
    desk.release(plans[1].request_id, 1)
    heard()
    assert is_deferred(2)
    desk.release(plans[2].request_id, 0)
    heard()
    assert not is_deferred(0)


def test_a_desk_that_is_killed_comes_back_and_has_the_room_that_it_is_told_of_next(tmp_path):
    import ray

    desk = ShareDesk.start()
    desk.open(1)
    assert desk.claim("a")
    ray.kill(desk._handle, no_restart=False)  # which is not waited for
    assert wait_until(lambda: not desk.claim("a"))
    desk.open(1)
    assert desk.claim("a")
    desk.release("a", 0)
    assert not desk.claim("a")


def test_an_encode_actor_tells_of_its_room_with_every_request(monkeypatch):
    monkeypatch.setattr("actors.encode._keep_objects", lambda: None)
    told: list[int] = []

    class Desk:
        def open(self, num_requests: int) -> None:
            told.append(num_requests)

    actor = EncodeActor(make_config(encode={"device": "cpu", "threads": 1}), "random:tiny", None, Desk())
    for _ in range(2):
        actor(random_request((2, 4, 4)))
    assert told == [0, 0, 0]


def test_a_run_that_shares_its_decoding_gives_the_same_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    media = tmp_path / "media"
    media.mkdir()
    for number in range(5):
        make_video(media / f"{number}.mp4", num_frames=20 + number)
    make_image(media / "a.png")
    (media / "cut.mp4").write_bytes((media / "3.mp4").read_bytes()[:3000])
    sections = {"request": {"max_patches": 64}, "ray": {"decode_workers": 1}}
    config = Config.from_values({"model": "random:tiny", "encode": {"device": "cpu"}, **sections})
    embed(media, tmp_path / "local", config=config, runner="local")
    monkeypatch.setattr(cluster, "EncodeActor", StandInEncodeActor)
    monkeypatch.setattr(cluster, "ShareDesk", EarlyDesk)
    monkeypatch.setattr(cluster, "RayRunner", StandInRunner)
    embed(media, tmp_path / "shared", config=config, runner="ray")
    local, shared = embeddings_of(tmp_path / "local"), embeddings_of(tmp_path / "shared")
    assert shared.drop_columns(["decoder"]) == local.drop_columns(["decoder"])
    assert errors_of(tmp_path / "shared") == errors_of(tmp_path / "local")
    names = [Path(uri).name for uri in shared["source_uri"].to_pylist()]
    served = dict(zip(names, shared["decoder"].to_pylist(), strict=True))
    assert {"nvdec", "pyav"} <= set(served.values())
    assert (served["1.mp4"], served["a.png"]) == ("pyav", "pillow")
