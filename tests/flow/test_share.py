"""Decode actors ask one desk, whichever process they are in."""

import pytest

from actors.decode import DecodeActor
from actors.share import ShareDesk
from pipeline.plan.schema import packed_request
from pipeline.request.deferred import deferred_plan
from tests.device.nvdec_factories import make_config, make_plan
from tests.media_factory import make_video

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_node_ray")]


def test_a_decode_actor_defers_while_the_desk_gives_room(tmp_path):
    import ray

    plans = [make_plan(make_video(tmp_path / f"{count}.mp4", num_frames=count)) for count in (4, 5, 6)]
    desk = ShareDesk.start()
    actor = ray.remote(DecodeActor).remote(make_config(), None, desk)

    def is_deferred(number: int) -> bool:
        table = ray.get(actor.__call__.remote(packed_request(plans[number])))
        return deferred_plan(table) is not None

    assert not is_deferred(0)
    desk.open(1)
    assert [is_deferred(number) for number in (1, 2)] == [True, False]
    desk.release(plans[1].request_id, 1)
    assert is_deferred(2)
    desk.release(plans[2].request_id, 0)
    assert not is_deferred(0)
