"""A request that is decoded where it is encoded: in place of patch rows it carries its plan row.

In a run where that may happen every request has one column more, empty where the rows are there. So all requests have
one schema, and what passes through Ray for a deferred one is some kilobytes.
"""

import pyarrow as pa

from pipeline.plan.schema import PACKED_ROW, RequestPlan, packed_request, requests_of, unpacked_request
from pipeline.request.table import RequestMeta, wrap_request

_COLUMN = pa.field(PACKED_ROW, pa.binary())


def deferred_request(plan: RequestPlan, *, with_planes: bool = False) -> pa.Table:
    """One row in REQUEST_SCHEMA without clips, and the plan row beside it; with `planar` if other requests have it."""
    meta = RequestMeta(
        request_id=plan.request_id,
        media_type=plan.media_type,
        clips=(),
        decoders=(),
        failures=(),
        decode_seconds=0.0,
        planar=() if with_planes else None,
    )
    return wrap_request(meta, meta.layout.header()).append_column(_COLUMN, packed_request(plan)[PACKED_ROW])


def decoded_request(request: pa.Table) -> pa.Table:
    """A request whose rows are there, with the same columns."""
    return request.append_column(_COLUMN, pa.nulls(request.num_rows, pa.binary()))


def deferred_plan(request: pa.Table) -> RequestPlan | None:
    """The plan row of a deferred request; None for one that has its rows."""
    if PACKED_ROW not in request.column_names or not request[PACKED_ROW][0].is_valid:
        return None
    (plan,) = requests_of(unpacked_request(request))
    return plan
