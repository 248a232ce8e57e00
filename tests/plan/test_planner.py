from collections.abc import Sequence
from dataclasses import replace

from pipeline.errors import ErrorCode, MediaError, Stage
from pipeline.plan.planner import EMPTY_PLAN, Plan, make_plan, sources_of, sources_table
from pipeline.plan.probe import ProbeResult, results_of, results_table
from pipeline.sources.listing import Listing, SourceFailure, SourceItem
from tests.plan.factories import make_image, make_item, make_recipe, make_start, make_video


class Headers:
    """Probes from a table of what each path holds, and remembers what it was asked."""

    def __init__(self, **contents: object) -> None:
        self.contents = contents
        self.asked: list[str] = []

    def __call__(self, items: Sequence[SourceItem]) -> list[ProbeResult]:
        self.asked = [item.uri for item in items]
        return results_of(results_table(self._probe(item) for item in reversed(items)))

    def _probe(self, item: SourceItem) -> ProbeResult:
        source_id, found = self.contents[item.uri.strip("/")]
        error = found if isinstance(found, MediaError) else None
        return ProbeResult(item=item, source_id=source_id, info=None if error else found, error=error)


def listing_of(*uris: str, failures: Sequence[SourceFailure] = ()) -> Listing:
    return Listing(items=tuple(make_item(uri) for uri in uris), failures=tuple(failures))


def plan_of(headers: Headers, listing: Listing, known: Plan = EMPTY_PLAN) -> Plan:
    return make_plan(listing, known, headers, make_recipe())


def corrupt() -> MediaError:
    return MediaError(ErrorCode.CORRUPT_MEDIA, "/bad: broken", Stage.PROBE)


def test_sources_become_requests_records_and_failures() -> None:
    headers = Headers(a=("1", make_video()), b=("2", make_image()), bad=("3", corrupt()))
    plan = plan_of(headers, listing_of("/a", "/b", "/bad"))
    assert len(plan.requests) == 2
    assert [(record.source_uri, record.num_clips) for record in plan.sources] == [("/a", 1), ("/b", 1), ("/bad", 0)]
    assert [(failure.source_uri, failure.code) for failure in plan.failures] == [("/bad", "corrupt_media")]
    assert sources_of(sources_table(plan.sources)) == plan.sources


def test_byte_identical_files_share_one_clip_with_an_id_for_each_path() -> None:
    headers = Headers(a=("same", make_video()), b=("same", make_video()))
    plan = plan_of(headers, listing_of("/a", "/b"))
    (clip,) = plan.requests[0].clips
    assert clip.source_uris == ("/a", "/b")
    assert len(set(clip.clip_ids)) == 2
    assert plan.num_clip_rows == 2


def test_planning_again_probes_nothing_and_changes_nothing() -> None:
    headers = Headers(a=("1", make_video()), bad=("3", corrupt()))
    first = plan_of(headers, listing_of("/a", "/bad"))
    headers.asked = []
    assert plan_of(headers, listing_of("/a", "/bad"), first) == first
    assert headers.asked == []


def test_a_new_file_is_added_and_earlier_requests_stay_as_they_are() -> None:
    headers = Headers(a=("1", make_video()), b=("2", make_video()))
    first = plan_of(headers, listing_of("/b"))
    second = plan_of(headers, listing_of("/a", "/b"), first)
    assert headers.asked == ["/a"]
    assert second.requests[: len(first.requests)] == first.requests
    assert second.num_clip_rows == 2


def test_changed_bytes_under_a_path_are_new_content_beside_the_old() -> None:
    first = plan_of(Headers(a=("1", make_video())), listing_of("/a"))
    changed = Listing(items=(replace(make_item("/a"), modified_ns=2),), failures=())
    second = plan_of(Headers(a=("2", make_video())), changed, first)
    assert [record.source_id for record in second.sources] == ["1", "2"]
    assert second.num_clip_rows == 2


def test_a_failure_that_a_retry_can_mend_is_probed_again_and_another_is_not() -> None:
    unreadable = MediaError(ErrorCode.UNREADABLE, "/a: permission denied", Stage.PROBE)
    first = plan_of(Headers(a=(None, unreadable), bad=("3", corrupt())), listing_of("/a", "/bad"))
    headers = Headers(a=("1", make_video()))
    second = plan_of(headers, listing_of("/a", "/bad"), first)
    assert headers.asked == ["/a"]
    assert [failure.source_uri for failure in second.failures] == ["/bad"]
    assert sorted((record.source_uri, record.num_clips) for record in second.sources) == [("/a", 1), ("/bad", 0)]


def test_an_entry_that_cannot_be_listed_is_a_failed_source_once_however_often_it_is_planned() -> None:
    dangling = SourceFailure(uri="/link", code=ErrorCode.UNREADABLE, message="/link: dangling")
    listing = listing_of(failures=[dangling])
    first = plan_of(Headers(), listing)
    second = plan_of(Headers(), listing, first)
    assert first == second
    assert [record.source_uri for record in first.sources] == ["/link"]
    assert [failure.stage for failure in first.failures] == [Stage.LIST]


def test_a_refused_aspect_ratio_is_a_failure_that_names_the_file() -> None:
    plan = plan_of(Headers(a=("1", make_image(width=4000, height=12))), listing_of("/a"))
    assert plan.failures[0].message.startswith("/a: 4000 x 12 pixels")
    assert plan.failures[0].stage is Stage.PLAN


def test_a_source_that_vanished_keeps_its_rows() -> None:
    headers = Headers(a=("1", make_video()), b=("2", make_video()))
    first = plan_of(headers, listing_of("/a", "/b"))
    assert plan_of(headers, listing_of("/a"), first) == first


def test_one_image_under_several_spans_is_encoded_once_and_has_a_row_for_each() -> None:
    spans = [(None, None), (0.0, None), (1.0, 2.0)]
    items = tuple(make_item("/a", start_seconds=start, end_seconds=end) for start, end in spans)
    plan = plan_of(Headers(a=("1", make_image())), Listing(items=items, failures=()))
    (clip,) = plan.requests[0].clips
    assert len(set(clip.clip_ids)) == 3
    assert sum(record.num_clips for record in plan.sources) == plan.num_clip_rows == 3


def test_a_touched_file_beside_a_new_copy_of_it_gives_the_copy_a_clip_of_its_own() -> None:
    first = plan_of(Headers(a=("same", make_video())), listing_of("/a"))
    touched = Listing(items=(replace(make_item("/a"), modified_ns=2), make_item("/b")), failures=())
    second = plan_of(Headers(a=("same", make_video()), b=("same", make_video())), touched, first)
    assert second.requests[0] == first.requests[0]
    assert [clip.source_uris for request in second.requests for clip in request.clips] == [("/a",), ("/b",)]
    assert [(record.source_uri, record.modified_ns) for record in second.sources] == [("/a", 2), ("/b", 1)]


def test_a_new_span_of_a_file_keeps_the_error_of_an_earlier_one() -> None:
    headers = Headers(a=("1", make_video()))
    late, early = (make_item("/a", start_seconds=start, end_seconds=start + 2) for start in (500.0, 0.0))
    first = plan_of(headers, Listing(items=(late,), failures=()))
    both = plan_of(headers, Listing(items=(early, late), failures=()), first)
    alone = plan_of(headers, Listing(items=(early,), failures=()), first)
    for second in (both, alone):
        assert [failure.code for failure in second.failures] == [ErrorCode.EMPTY_SPAN]
        assert sorted(record.num_clips for record in second.sources) == [0, 1]
    assert plan_of(headers, Listing(items=(early, late), failures=()), both) == both


def test_a_probe_result_survives_arrow_with_its_keyframes_and_safe_starts() -> None:
    info = make_video(keyframes=(0, 12), frame_times_seconds=(0.0, 0.5), safe_starts=(make_start(70),))
    result = ProbeResult(item=make_item(), source_id="b2-a", info=info, error=None)
    assert results_of(results_table([result])) == [result]
