"""How much of the encoder's own rate is left through Ray, when decoding is not what bounds it?

    python -m benchmarks.pipeline --model random:2b --grid 64x28x28 --requests 150

Producers hand out ready requests as decode actors would, and the encode actor takes them from the object store with the
placement of a run. Beside it the same stage called in this process, without Ray, in a loop and from two threads.
Seconds a request are taken between results, the first `--warmup` left out. `in calls` is the time in encode calls over
the time between results, and two calls overlap on a GPU; `idle` is the share of the time with no kernel running, by
the driver's count, until all but the last ten are back: the device has nothing more to do while the very last are on
their way. `same vectors` counts the requests with the vectors that the stage alone gave, to the bit; how exact those
are, `benchmarks.encoder` measures. On a machine of several GPUs each has an encode actor, and `of the stage alone` is
out of their number.
"""

import argparse
import statistics
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
from ray.data import ActorPoolStrategy

from actors.encode import EncodeActor
from benchmarks.gpu_load import GpuLoad
from benchmarks.measure import measure, print_record, print_table
from benchmarks.requests import make_store, parse_grid, random_request
from pipeline.config import Config, load_config
from pipeline.encoder.counts import Grid
from pipeline.flow.cluster import RayRunner, tables_of
from pipeline.stages.encode import Encode, encode_device

_LAST = 10  # requests that are done on the device before their results are seen, and some


class Producer:
    """Copies one ready request into the object store for each row it is given."""

    def __init__(self, grid: Grid) -> None:
        self._request = random_request(grid)

    def __call__(self, _: pa.Table) -> pa.Table:
        """One row in, one request out."""
        return self._request


def alone(config: Config, model: str, grid: Grid, repeats: int) -> tuple[bytes, list[dict[str, Any]]]:
    """The vectors, and seconds a request, of the stage without Ray: in a loop, and from two threads."""
    device = encode_device(config)
    store = make_store([[grid]], device)
    table = random_request(grid) if store is None else store.request(grid)
    stage = Encode(config, model)
    timing = measure(lambda: stage(table), repeats=repeats, device=device.type)
    started = time.perf_counter()
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(stage, [table] * repeats))
    both = (time.perf_counter() - started) / repeats
    encoded = stage(table)
    ways = encoded["transfer"].to_pylist()
    return encoded["vectors"][0].as_py(), [
        {"way": "stage alone", "transfer": ways, "seconds": timing.median_seconds},
        {"way": "two threads of it", "transfer": ways, "seconds": both},
    ]


def through_ray(
    config: Config, model: str, grid: Grid, num_requests: int, warmup: int
) -> tuple[Counter[bytes], dict[str, Any]]:
    """All requests' vectors, and seconds a request between results of the encode actor, from a stream of ready ones."""
    with RayRunner(config) as runner:
        blocks = [pa.table({"number": [number]}) for number in range(num_requests)]
        dataset = (
            runner._dataset(blocks)
            .map_batches(
                Producer,
                fn_constructor_args=(grid,),
                batch_format="pyarrow",
                batch_size=1,
                num_cpus=runner._room.cores_per_decoder,
                compute=ActorPoolStrategy(size=min(6, runner._room.decode_workers)),
            )
            .map_batches(
                EncodeActor,
                fn_constructor_args=(config, model),
                batch_format="pyarrow",
                batch_size=1,
                **runner._encode_placement(),
            )
        )
        arrivals, encodes, ways = [], [], set()
        vectors: Counter[bytes] = Counter()
        with GpuLoad(num_gpus=runner.capacity.encode) as load:
            for table in tables_of(dataset):
                arrivals += [time.perf_counter()] * table.num_rows
                encodes += table["encode_seconds"].to_pylist()
                ways |= set(table["transfer"].to_pylist())
                vectors.update(table["vectors"].to_pylist())
                if len(arrivals) <= warmup:
                    load.forget()
                elif len(arrivals) >= num_requests - _LAST:
                    load.stop()
    assert len(arrivals) == num_requests, "requests were lost or came twice"
    elapsed = arrivals[-1] - arrivals[warmup - 1]
    return vectors, {
        "way": "through Ray",
        "transfer": sorted(ways),
        "seconds": elapsed / (num_requests - warmup),
        "in_calls": sum(encodes[warmup:]) / elapsed if elapsed else 0.0,
        "idle": load.idle_share,
        "encode_seconds": statistics.median(encodes[warmup:]),
    }


def main() -> None:
    """Measure both and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:2b")
    parser.add_argument("--grid", default="64x28x28", help="TxHxW in patches")
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--warmup", type=int, default=30)
    parser.add_argument("--set", action="append", default=[], dest="settings", help="section.key=value of the config")
    arguments = parser.parse_args()
    config = load_config(None, arguments.settings, arguments.model)
    grid = parse_grid(arguments.grid)
    vectors, streamed = through_ray(config, arguments.model, grid, arguments.requests, arguments.warmup)
    expected, (single, both) = alone(config, arguments.model, grid, repeats=max(2, arguments.requests // 5))
    streamed["same_vectors"] = vectors[expected]
    results = [{**result, "of_alone": single["seconds"] / result["seconds"]} for result in (single, both, streamed)]
    print_table(
        ["way", "transfer", "ms a request", "of the stage alone", "in calls", "idle", "same vectors"],
        [
            [
                result["way"],
                ", ".join(result["transfer"]),
                f"{result['seconds'] * 1e3:.1f}",
                f"{result['of_alone']:.2f}",
                f"{result['in_calls']:.0%}" if "in_calls" in result else "",
                f"{result['idle']:.1%}" if result.get("idle") is not None else "",
                f"{result['same_vectors']} of {arguments.requests}" if "same_vectors" in result else "",
            ]
            for result in results
        ],
    )
    print_record("pipeline", vars(arguments), results)


if __name__ == "__main__":
    main()
