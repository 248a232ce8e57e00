"""Embed on a Ray cluster that gets a second node on the way, as an autoscaler would add one for actors that wait.

    python -m tests.soak.added_node SOURCES OUT

The last line says how many decode workers there were, and how many of them on the node that came late.
"""

import sys
import threading
from pathlib import Path

import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster

from pipeline import Config, embed
from tests.faults.processes import num_fragments, wait_until

STORE_BYTES = 128 << 20


def main() -> None:
    sources, out = sys.argv[1], Path(sys.argv[2])
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "object_store_memory": STORE_BYTES, "include_dashboard": False},
    )
    ray.init(address=cluster.address, log_to_driver=False)
    late: list[str] = []

    def add() -> None:
        wait_until(lambda: num_fragments(out) >= 20)
        late.append(cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES).node_id)

    threading.Thread(target=add, daemon=True).start()
    values = {
        "model": "random:tiny",
        "request": {"max_patches": 1},
        "encode": {"threads": 1},
        "ray": {"decode_workers": 3, "decode_cores": 1},
    }
    summary = embed(sources, out, config=Config.from_values(values), runner="ray")
    places = [actor["Address"]["NodeID"] for actor in actors().values() if "DecodeActor" in actor["ActorClassName"]]
    num_late = sum(place in late for place in places)
    assert num_late, f"{len(places)} decode workers, none of them on the node that was added"
    sys.stdout.write(f"{summary.num_new_rows} rows, {len(places)} decode workers, {num_late} on the added node\n")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
