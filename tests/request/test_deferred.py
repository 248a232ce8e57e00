"""A deferred request is a plan row under way, and nothing else."""

from benchmarks.requests import random_request
from pipeline.plan.schema import RequestPlan
from pipeline.request.deferred import decoded_request, deferred_plan, deferred_request
from pipeline.request.table import unwrap_request
from tests.plan.factories import make_clip


def test_a_deferred_request_gives_its_plan_back_and_holds_no_pixels():
    plan = RequestPlan.of([make_clip(), make_clip("/media/b.mp4", "b2-b")])
    table = deferred_request(plan)
    assert deferred_plan(table) == plan
    assert unwrap_request(table).meta.clips == ()
    assert table.nbytes < 10_000


def test_a_decoded_request_is_itself_with_an_empty_column():
    request = random_request((2, 4, 4))
    table = decoded_request(request)
    assert deferred_plan(table) is None
    assert deferred_plan(request) is None
    assert unwrap_request(table).meta == unwrap_request(request).meta
    assert table.schema == deferred_request(RequestPlan.of([make_clip()])).schema
