"""Embed on a Ray cluster of a driver's node, one with cores and one with a GPU (in name), and say who worked where.

    python -m tests.flow.two_node_types SOURCES OUT

A process of its own, so that the cluster of other tests is not touched. The last line is JSON.
"""

import json
import logging
import sys
from collections import defaultdict

import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster

from pipeline import Config, embed

STORE_BYTES = 128 << 20


def main() -> None:
    sources, out = sys.argv[1:]
    logging.getLogger("ray").setLevel(logging.ERROR)
    head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = {
        cluster.add_node(num_cpus=3, object_store_memory=STORE_BYTES).node_id: "cpu",
        cluster.add_node(num_cpus=0, num_gpus=1, object_store_memory=STORE_BYTES).node_id: "gpu",
    }
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    values = {"model": "random:tiny", "request": {"max_patches": 1}, "encode": {"threads": 1}}
    summary = embed(sources, out, config=Config.from_values(values), runner="ray")
    places: dict[str, set[str]] = defaultdict(set)
    counts: dict[str, int] = defaultdict(int)
    for actor in actors().values():
        for name in ("ProbeActor", "DecodeActor", "EncodeActor", "WriteActor"):
            if name in actor["ActorClassName"]:
                places[name].add(nodes.get(actor["Address"]["NodeID"], "elsewhere"))
                counts[name] += 1
    found = {"rows": summary.num_new_rows, "counts": counts, "places": {key: sorted(at) for key, at in places.items()}}
    sys.stdout.write(json.dumps(found) + "\n")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
