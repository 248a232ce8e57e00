"""Reading a run's tables back, in an order that does not depend on the run."""

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds


def embeddings_of(out: Path) -> pa.Table:
    table = ds.dataset(out / "embeddings", format="parquet").to_table()
    return table.sort_by([("source_uri", "ascending"), ("clip_index", "ascending"), ("position", "ascending")])


def errors_of(out: Path) -> pa.Table:
    table = ds.dataset(out / "errors", format="parquet").to_table()
    return table.sort_by([("source_uri", "ascending")])


def fragments_of(out: Path) -> dict[str, int]:
    """Every data file with the time it was last written."""
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
