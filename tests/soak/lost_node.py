"""Embed on a Ray cluster of a head and two nodes, one of which is lost on the way.

    python -m tests.soak.lost_node SOURCES OUT

The encoder and the writer may be on the lost node too; only the driver's node stays.
"""

import os
import signal
import sys
import threading
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from pipeline import Config, embed
from tests.faults.processes import num_fragments, wait_until

STORE_BYTES = 128 << 20


def main() -> None:
    sources, out = sys.argv[1], Path(sys.argv[2])
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False},
    )
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)

    done_at_the_kill: list[int] = []

    def lose() -> None:
        wait_until(lambda: num_fragments(out) >= 20)
        for process in nodes[0].all_processes["raylet"]:
            os.kill(process.process.pid, signal.SIGKILL)
        done_at_the_kill.append(num_fragments(out))

    threading.Thread(target=lose, daemon=True).start()
    values = {"model": "random:tiny", "request": {"max_patches": 1}, "encode": {"threads": 1}}
    summary = embed(sources, out, config=Config.from_values(values), runner="ray")
    num_left = sum(node["Alive"] for node in ray.nodes())
    assert done_at_the_kill[0] < summary.num_requests, "the run was over before its node was lost"
    assert num_left == len(nodes), f"{num_left} nodes are alive"  # the driver's and the other one
    sys.stdout.write(f"{summary.num_new_rows} rows, {num_left} nodes left\n")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
