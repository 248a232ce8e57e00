import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
import ray
import ray.data
from ray.data.context import DataContext

from actors.decode import DecodeActor, Decoders
from pipeline import Config, embed
from pipeline.checkpoint import resolve_model
from pipeline.device.store_mapping import find_mapping
from pipeline.errors import ModelError, OutputError, RunError
from pipeline.flow.cluster import RayRunner
from pipeline.flow.runner import Job, MainRun
from pipeline.plan.clips import Recipe
from pipeline.plan.planner import EMPTY_PLAN, make_plan
from pipeline.plan.probe import ProbeResult
from pipeline.plan.schema import packed_request
from pipeline.request.table import unwrap_request
from pipeline.sink.embeddings import RowSettings
from pipeline.sink.output import OutputFolder
from pipeline.sink.run_record import ModelIdentity
from pipeline.sink.verify import verify_output
from pipeline.sources.listing import SourceItem, list_sources
from pipeline.stages.write import WriteTarget
from tests.flow.tables import embeddings_of, errors_of, fragments_of
from tests.test_checkpoint import write_checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_node_ray")]

CONFIG = Config(model="random:tiny")


@pytest.fixture(scope="module")
def done(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ray") / "OUT"
    embed(corpus, out, config=CONFIG, runner="ray")
    return out


def test_ray_and_the_serial_runner_give_the_same_tables_to_the_bit(corpus: Path, done: Path, tmp_path: Path) -> None:
    embed(corpus, tmp_path / "OUT", config=CONFIG, runner="local")
    assert embeddings_of(done).equals(embeddings_of(tmp_path / "OUT"))
    assert errors_of(done).equals(errors_of(tmp_path / "OUT"))
    assert verify_output(OutputFolder(str(done))).ok


def test_a_second_run_through_ray_does_nothing_new(corpus: Path, done: Path) -> None:
    before = fragments_of(done)
    assert embed(corpus, done, config=CONFIG, runner="ray").num_requests == 0
    assert fragments_of(done) == before


@pytest.mark.parametrize("decode_cores", [None, 1.0], ids=["room-for-all", "room-for-one"])
def test_the_number_of_workers_does_not_change_a_row(
    corpus: Path, done: Path, tmp_path: Path, decode_cores: float | None
) -> None:
    workers = CONFIG.ray.model_copy(update={"decode_workers": 8, "decode_cores": decode_cores})
    config = CONFIG.model_copy(update={"ray": workers})
    embed(corpus, tmp_path / "OUT", config=config, runner="ray")
    assert embeddings_of(done).equals(embeddings_of(tmp_path / "OUT"))


def test_shards_are_planned_beside_the_run_of_those_before_them_to_the_same_rows(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.model_copy(update={"sources": CONFIG.sources.model_copy(update={"shard_sources": 2})})
    beside: list[bool] = []
    read_headers = RayRunner.probe

    def probe(
        runner: RayRunner, items: Sequence[SourceItem], config: Config, main: MainRun | None = None
    ) -> Generator[ProbeResult]:
        beside.append(main is not None)
        return read_headers(runner, items, config, main)

    monkeypatch.setattr(RayRunner, "probe", probe)
    summary = embed(corpus, tmp_path / "ray", config=config, runner="ray")
    embed(corpus, tmp_path / "local", config=config, runner="local")
    assert summary.num_sources == 9
    assert beside == [False, True, True, True, True]
    assert embeddings_of(tmp_path / "ray").equals(embeddings_of(tmp_path / "local"))
    assert errors_of(tmp_path / "ray").equals(errors_of(tmp_path / "local"))
    assert verify_output(OutputFolder(str(tmp_path / "ray"))).ok


class Main:
    """A run that headers are read beside of."""

    def __init__(self, *, is_awaited: bool) -> None:
        self.is_awaited = is_awaited
        self.num_checks_left = 10**9

    def check(self) -> None:
        self.num_checks_left -= 1
        if not self.num_checks_left:
            raise RunError("over")


def readers() -> list[int]:
    """Processes that read headers."""
    command_lines = {int(path.parent.name): path for path in Path("/proc").glob("[0-9]*/cmdline")}
    found = []
    for pid, path in command_lines.items():
        with suppress(OSError):
            if path.read_bytes().startswith(b"ray::ProbeActor"):
                found.append(pid)
    return found


def many_items(corpus: Path) -> list[SourceItem]:
    listing = list_sources([str(corpus)], CONFIG.sources)
    return [item for item in listing.items if item.uri.endswith(".png")] * 100


@pytest.mark.parametrize(("is_awaited", "num_readers"), [(False, 1), (True, 3)])
def test_headers_beside_a_run_are_all_read_though_readers_are_killed(
    corpus: Path, is_awaited: bool, num_readers: int
) -> None:
    items = many_items(corpus)
    config = CONFIG.model_copy(update={"ray": CONFIG.ray.model_copy(update={"decode_workers": 3})})
    with RayRunner(config) as runner:
        results = runner.probe(items, config, Main(is_awaited=is_awaited))
        found = [next(results)]
        killed = readers()
        assert len(killed) == num_readers
        os.kill(killed[0], signal.SIGKILL)
        found += results
    assert sorted(result.item.uri for result in found) == sorted(item.uri for item in items)
    assert all(result.info is not None for result in found)


def test_what_is_broken_off_leaves_no_thread_that_could_meet_the_end_of_ray(corpus: Path) -> None:
    before = set(threading.enumerate())
    with RayRunner(CONFIG) as runner:
        results = runner.probe(many_items(corpus), CONFIG)
        next(results)
        results.close()
        left = set(threading.enumerate()) - before
    assert not {thread.name for thread in left}


def test_reading_headers_ends_with_the_run_that_it_is_beside_of(corpus: Path) -> None:
    main = Main(is_awaited=False)
    with RayRunner(CONFIG) as runner:
        results = runner.probe(many_items(corpus), CONFIG, main)
        next(results)
        main.num_checks_left = 1
        with pytest.raises(RunError, match="over"):
            list(results)
        assert gone(readers)


def gone(find: Callable[[], list[int]], seconds: float = 30.0) -> bool:
    """Whether nothing is found any more within some time."""
    end = time.monotonic() + seconds
    while find() and time.monotonic() < end:
        time.sleep(0.1)
    return not find()


class WhereIsIt:
    """Receives requests as an encode actor does, and says where their bytes lie."""

    def __call__(self, table: pa.Table) -> pa.Table:
        request = unwrap_request(table)
        return pa.table(
            {
                "rows": [table.num_rows],
                "num_bytes": [request.buffer.size],
                "aligned": [request.address % 64 == 0],
                "is_in_store": [find_mapping(request.address, request.buffer.size) is not None],
            }
        )


def test_a_request_reaches_its_consumer_inside_the_object_stores_mapping(corpus: Path) -> None:
    recipe = Recipe(preprocessing=resolve_model("random:tiny").preprocessing, config=CONFIG)
    listing = list_sources([str(corpus)], CONFIG.sources)
    with RayRunner(CONFIG) as runner:
        plan = make_plan(listing, EMPTY_PLAN, lambda items: runner.probe(items, CONFIG), recipe)
    DataContext.get_current().target_max_block_size = 1 << 20
    rows = (
        ray.data.from_arrow([packed_request(request) for request in plan.requests])
        .map_batches(
            DecodeActor,
            fn_constructor_args=(CONFIG, Decoders()),
            batch_format="pyarrow",
            batch_size=1,
            concurrency=1,
            num_cpus=0.5,
        )
        .map_batches(WhereIsIt, batch_format="pyarrow", batch_size=1, concurrency=1, num_cpus=0.5)
        .take_all()
    )
    assert len(rows) == len(plan.requests)
    assert {row["rows"] for row in rows} == {1}
    # Ray carries objects up to 100 KiB inside the message, outside the store.
    stored = [row for row in rows if row["num_bytes"] > 200_000]
    assert len(stored) >= 2
    for row in stored:
        assert row["aligned"]
        assert row["is_in_store"]


def run_one_image(corpus: Path, out: Path, model: str) -> None:
    """Past the checks that a run begins with."""
    identity = ModelIdentity(model_id="m", model_revision="r", random_weights=True)
    settings = RowSettings(model=identity, config_hash="h", level="clip", dtype="float32")
    job = Job(config=CONFIG, model=model, target=WriteTarget(output_uri=str(out), settings=settings))
    recipe = Recipe(preprocessing=resolve_model("random:tiny").preprocessing, config=CONFIG)
    listing = list_sources([str(corpus / "0.png")], CONFIG.sources)
    with RayRunner(CONFIG) as runner:
        plan = make_plan(listing, EMPTY_PLAN, lambda items: runner.probe(items, CONFIG), recipe)
        list(runner.run([plan.requests], job))


def test_an_error_in_an_actor_comes_out_as_itself(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "OUT").write_text("a file where a folder should be")
    with pytest.raises(OutputError):
        run_one_image(corpus, tmp_path / "OUT", "random:tiny")


def test_weights_that_cannot_be_read_stop_the_run_with_their_own_error(corpus: Path, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    with pytest.raises(ModelError, match=r"model.safetensors: not a readable safetensors file"):
        run_one_image(corpus, tmp_path / "OUT", str(model))
