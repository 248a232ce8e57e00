"""Embed on a Ray cluster that gets a second node on the way and is told to give it back, and say who decoded what.

    python -m tests.flow.late_node SOURCES OUT

A process of its own, so that the cluster of other tests is not touched. The last line is JSON. The run waits for its
decoding, because each row takes some time more for as long as the nodes come and go. The embedding has a thread,
and not the node: a node installs signal handlers, which only the main thread may.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from actors.decode import DecodeActor
from pipeline import Config, embed
from pipeline.flow import cluster as runner
from tests.faults.processes import num_fragments, wait_until

STORE_BYTES = 128 << 20
SECONDS_A_ROW = 1.5
QUIET_SECONDS = 3.0
FOLDER = "PATCHWIRE_TEST_FOLDER"
VALUES = {
    "model": "random:tiny",
    "request": {"max_patches": 1},
    "encode": {"threads": 1},
    "ray": {"decode_workers": 3, "decode_cores": 1},
}


class PlacedDecodeActor(DecodeActor):
    """Writes down on which node it decodes, and takes its time until it is told not to."""

    def __call__(self, plan: pa.Table) -> pa.Table:
        decoded = super().__call__(plan)
        folder = Path(os.environ[FOLDER])
        with (folder / ray.get_runtime_context().get_node_id()).open("a", encoding="utf-8") as record:
            record.write("row\n")
        if not (folder / "hurry").exists():
            time.sleep(SECONDS_A_ROW)
        return decoded


def num_decoded(folder: Path, node_id: str) -> int:
    record = folder / node_id
    return len(record.read_text(encoding="utf-8").splitlines()) if record.exists() else 0


def is_quiet(count: Callable[[], int]) -> bool:
    """Whether a count stands still for some seconds."""
    before = count()
    time.sleep(QUIET_SECONDS)
    return count() == before


def drain(address: str, node_id: str) -> bool:
    """Tell Ray that a node will be taken away in a minute, as clouds do of a spot instance; whether it was heard."""
    reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    deadline_ms = int(1000 * (time.time() + 60))
    accepted, _ = ray._raylet.GcsClient(address=address).drain_node(node_id, reason, "taken away", deadline_ms)
    return bool(accepted)


def main() -> None:
    sources, out = sys.argv[1], Path(sys.argv[2])
    folder = out.parent / "record"
    folder.mkdir()
    os.environ[FOLDER] = str(folder)
    logging.getLogger("ray").setLevel(logging.ERROR)
    head = {"num_cpus": 2, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    first = cluster.head_node.node_id
    runner.DecodeActor = PlacedDecodeActor
    found: dict[str, object] = {}
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(embed, sources, out, config=Config.from_values(VALUES), runner="ray")
        wait_until(lambda: num_fragments(out) >= 3)
        node = cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
        found["used"] = wait_until(lambda: num_decoded(folder, node.node_id) or running.done(), 60)
        found["runs_when_used"] = not running.done()
        found["drained"] = drain(cluster.address, node.node_id)
        found["quiet"] = wait_until(lambda: is_quiet(lambda: num_decoded(folder, node.node_id)), 30)
        cluster.remove_node(node)
        before = num_decoded(folder, first)
        found["goes_on"] = wait_until(lambda: num_decoded(folder, first) > before + 2, 30)
        found["runs_when_removed"] = not running.done()
        (folder / "hurry").touch()
        summary = running.result()
    found["rows"] = summary.num_new_rows
    found["decoded"] = {"first": num_decoded(folder, first), "late": num_decoded(folder, node.node_id)}
    sys.stdout.write(json.dumps(found) + "\n")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
