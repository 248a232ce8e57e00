"""A plan is the same after it was written and read, and so is one that an earlier version wrote."""

from dataclasses import replace

import pyarrow as pa

from pipeline.plan.schema import CLIP_TYPE, RequestPlan, packed_request, plan_table, requests_of, unpacked_request
from tests.plan.factories import make_clip, make_start


def make_request() -> RequestPlan:
    return RequestPlan.of([make_clip("/a"), replace(make_clip("/b"), origin=make_start(70))])


def test_safe_starts_survive_arrow_and_are_no_part_of_a_request_s_name() -> None:
    request = make_request()
    assert requests_of(plan_table([request])) == [request]
    assert requests_of(unpacked_request(packed_request(request))) == [request]
    assert RequestPlan.of([replace(clip, origin=None) for clip in request.clips]).request_id == request.request_id


def test_a_plan_that_an_earlier_version_wrote_is_read_without_what_it_lacks() -> None:
    request = make_request()
    earlier = pa.struct([field for field in CLIP_TYPE if field.name not in {"byte_ranges", "codec", "origin"}])
    table = plan_table([request])
    rows = [
        [{name: value for name, value in clip.items() if earlier.get_field_index(name) >= 0} for clip in clips]
        for clips in table["clips"].to_pylist()
    ]
    place = table.schema.get_field_index("clips")
    (read,) = requests_of(table.set_column(place, "clips", pa.array(rows, pa.list_(earlier))))
    assert read.clips == tuple(replace(clip, codec=None, origin=None) for clip in request.clips)
