"""A flow cut in two: requests prepared in one run, and embedded in another that has nothing but their folder."""

import shutil
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from pipeline import Config, embed, prepare
from pipeline.errors import OutputError, OutputMismatchError, RequestError, UsageError
from pipeline.flow.plan_store import announce_retry
from pipeline.plan.schema import plan_table, requests_of
from pipeline.request.table import unwrap_request
from pipeline.sink.fragments import read_table
from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.verify import verify_output
from pipeline.stages.prepared import Load
from tests.command import patchwire
from tests.containers import make_shard
from tests.flow.tables import embeddings_of, errors_of
from tests.media_factory import make_image, make_video

CONFIG = Config(model="random:tiny")
STRIDE = Config.from_values({"model": "random:tiny", "clips": {"mode": "stride", "seconds": 0.5}})


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video, an image, a member of a shard, a file that fails when it is decoded and one that is no medium."""
    folder = tmp_path_factory.mktemp("media")
    make_video(folder / "a.mp4", num_frames=40)
    make_image(folder / "i.png")
    make_shard(folder / "s.tar", {"x.png": make_image(folder / "x.png", seed=5).read_bytes()})
    (folder / "x.png").unlink()
    cut = make_image(folder / "cut.png", width=200, height=200).read_bytes()
    (folder / "cut.png").write_bytes(cut[: len(cut) // 2])
    (folder / "text.mp4").write_text("not a video")
    return folder


@pytest.fixture(scope="module")
def direct(media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("direct") / "OUT"
    embed(media, out, config=STRIDE, runner="local")
    return out


@pytest.fixture(scope="module")
def prepared(media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared from a copy of the media that is gone by now."""
    folder = tmp_path_factory.mktemp("prepared")
    hidden = media.with_name("moved away")
    summary = prepare(media, folder / "P", config=STRIDE, runner="local")
    media.rename(hidden)
    assert (summary.num_new_rows, summary.num_errors, summary.exit_code) == (0, 2, 3)
    assert embed(folder / "P", folder / "OUT", runner="local").num_errors == 2
    hidden.rename(media)
    return folder


def test_prepared_requests_give_the_rows_of_their_sources_to_the_bit_without_the_media(
    direct: Path, prepared: Path
) -> None:
    assert embeddings_of(prepared / "OUT").equals(embeddings_of(direct))
    assert errors_of(prepared / "OUT").equals(errors_of(direct))
    assert sorted(errors_of(direct)["stage"].to_pylist()) == ["decode", "probe"]
    assert {path.name for path in (prepared / "P" / "requests").iterdir()} == {
        f"{path.stem}.arrow" for path in (direct / "embeddings").iterdir()
    }
    for fragment in (direct / "embeddings").iterdir():
        assert (prepared / "OUT" / "embeddings" / fragment.name).read_bytes() == fragment.read_bytes()
    assert verify_output(OutputFolder(str(prepared / "OUT"))).ok


@pytest.mark.ray
@pytest.mark.usefixtures("one_node_ray")
def test_ray_prepares_and_embeds_the_same_to_the_bit(media: Path, direct: Path, prepared: Path, tmp_path: Path) -> None:
    prepare(media, tmp_path / "P", config=STRIDE, runner="ray")
    for file in (prepared / "P" / "requests").iterdir():
        ours, theirs = (
            unwrap_request(Load(str(folder / "P"))(plan)) for folder in (prepared, tmp_path) for plan in [plan_of(file)]
        )
        assert ours.meta.clips == theirs.meta.clips
        assert (ours.buffer == theirs.buffer).all()
    embed(tmp_path / "P", tmp_path / "OUT", runner="ray")
    assert embeddings_of(tmp_path / "OUT").equals(embeddings_of(direct))
    assert errors_of(tmp_path / "OUT").equals(errors_of(direct))


def plan_of(file: Path) -> pa.Table:
    """The plan row of a request file."""
    plan = read_table(OutputFolder(str(file.parents[1])), Kind.PLAN, "plan")
    return plan_table([request for request in requests_of(plan) if request.request_id == file.stem])


def test_the_encoders_buffer_lies_in_the_mapping_of_the_file(prepared: Path) -> None:
    for file in (prepared / "P" / "requests").iterdir():
        request = unwrap_request(Load(str(prepared / "P"))(plan_of(file)))
        [mapped] = [
            line.split()
            for line in Path("/proc/self/maps").read_text().splitlines()
            if int(line.split("-")[0], 16) <= request.address < int(line.split()[0].split("-")[1], 16)
        ]
        assert mapped[5] == str(file)
        start = int(mapped[0].split("-")[0], 16)
        assert file.read_bytes()[request.address - start :][: request.buffer.size] == request.buffer.tobytes()


def test_a_second_run_prepares_nothing_and_a_lost_request_is_made_again(media: Path, prepared: Path) -> None:
    files = {path: path.read_bytes() for path in (prepared / "P" / "requests").iterdir()}
    assert prepare(media, prepared / "P", config=STRIDE, runner="local").num_requests == 0
    lost = next(iter(files))
    lost.unlink()
    with pytest.raises(OutputError, match=rf"1 of {len(files)} requests are missing \({lost.stem}\)"):
        embed(prepared / "P", prepared / "LOST", runner="local")
    assert prepare(media, prepared / "P", config=STRIDE, runner="local").num_requests == 1
    assert lost.exists()
    assert embed(prepared / "P", prepared / "OUT", runner="local").num_requests == 0


def test_what_is_prepared_later_is_embedded_by_the_next_run(media: Path, tmp_path: Path) -> None:
    for source, total in ((media / "i.png", 1), (media / "s.tar", 2)):
        prepare(source, tmp_path / "P", config=CONFIG, runner="local")
        summary = embed(tmp_path / "P", tmp_path / "OUT", runner="local")
        assert (summary.num_requests, summary.num_clips) == (1, total)
    embed(media / "a.mp4", tmp_path / "OTHER", config=CONFIG, runner="local")
    with pytest.raises(OutputError, match="name another --out"):
        embed(tmp_path / "P", tmp_path / "OTHER", runner="local")


def test_a_killed_retry_is_ended_by_embedding_the_whole_request_again(tmp_path: Path) -> None:
    pictures = [make_image(tmp_path / f"{seed}.png", width=200, height=200, seed=seed) for seed in range(2)]
    pictures[0].write_bytes(pictures[0].read_bytes()[:20_000])
    prepare(pictures, tmp_path / "P", config=CONFIG, runner="local")
    assert embed(tmp_path / "P", tmp_path / "OUT", runner="local").num_errors == 1
    before = embeddings_of(tmp_path / "OUT")
    folder = OutputFolder(str(tmp_path / "OUT"))
    [request_id] = folder.fragments(Kind.EMBEDDINGS)
    announce_retry(folder, {request_id})
    again = embed(tmp_path / "P", tmp_path / "OUT", runner="local")
    assert (again.num_requests, again.num_errors) == (1, 1)
    assert embeddings_of(tmp_path / "OUT").equals(before)
    assert verify_output(folder).ok


def test_a_table_that_is_asked_for_is_made_of_the_embeddings_and_not_of_the_requests(
    media: Path, tmp_path: Path
) -> None:
    config = Config.from_values({"model": "random:tiny", "output": {"compact": True}})
    prepare(media / "i.png", tmp_path / "P", config=config, runner="local")
    assert not (tmp_path / "P" / "table").exists()
    embed(tmp_path / "P", tmp_path / "OUT", config=config, runner="local")
    assert verify_output(OutputFolder(str(tmp_path / "OUT"))).num_table_rows == 1


def test_requests_in_a_store_give_the_same_rows(media: Path, tmp_path: Path) -> None:
    source, url = media / "i.png", "memory://prepared/P"
    assert prepare(source, url, config=CONFIG, runner="local").num_requests == 1
    assert prepare(source, url, config=CONFIG, runner="local").num_requests == 0
    embed(url, tmp_path / "OUT", runner="local")
    embed(source, tmp_path / "DIRECT", config=CONFIG, runner="local")
    assert embeddings_of(tmp_path / "OUT").equals(embeddings_of(tmp_path / "DIRECT"))
    fsspec.filesystem("memory").rm("/prepared", recursive=True)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"frames": {"fps": 1.0}}, r"frames.fps: null there, 1.0 now"),
        ({"clips": {"mode": "whole"}}, r'clips.mode: "stride" there, "whole" now'),
        ({"sizes": {"max_tokens_per_frame": 64}}, r"sizes.max_tokens_per_frame: null there, 64 now"),
        ({"model": "random:2b"}, r'model.id: "random:tiny" there, "random:2b" now'),
    ],
)
def test_settings_that_would_have_made_other_requests_are_refused_by_their_keys(
    prepared: Path, tmp_path: Path, changes: dict[str, object], key: str
) -> None:
    config = Config.from_values({**STRIDE.model_dump(mode="json"), **changes})
    with pytest.raises(OutputMismatchError, match=key):
        embed(prepared / "P", tmp_path / "OUT", config=config, runner="local")
    assert not (tmp_path / "OUT").exists()


def test_what_is_made_of_the_vectors_may_differ(prepared: Path, tmp_path: Path) -> None:
    values = STRIDE.model_dump(mode="json")
    config = Config.from_values({**values, "output": {**values["output"], "level": "frame"}})
    embed(prepared / "P", tmp_path / "OUT", config=config, runner="local")
    assert set(embeddings_of(tmp_path / "OUT")["level"].to_pylist()) == {"frame"}
    assert verify_output(OutputFolder(str(tmp_path / "OUT"))).ok


def test_requests_and_embeddings_are_not_taken_for_each_other(media: Path, direct: Path, prepared: Path) -> None:
    with pytest.raises(OutputMismatchError, match="expected embeddings, it holds requests"):
        embed(media, prepared / "P", config=STRIDE, runner="local")
    with pytest.raises(OutputMismatchError, match="expected requests, it holds embeddings"):
        prepare(media, direct, config=STRIDE, runner="local")
    with pytest.raises(OutputError, match="`patchwire embed` makes embeddings"):
        verify_output(OutputFolder(str(prepared / "P")))
    with pytest.raises(UsageError, match="prepared already"):
        prepare(prepared / "P", prepared / "P2", config=STRIDE, runner="local")
    with pytest.raises(UsageError, match="embedded alone"):
        embed([prepared / "P", media], prepared / "OUT2", config=STRIDE, runner="local")
    assert not (prepared / "P" / "embeddings").exists()


def test_a_damaged_request_stops_the_run_and_names_its_file(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared / "P", tmp_path / "P")
    file = next((tmp_path / "P" / "requests").iterdir())
    whole = file.read_bytes()
    other = next(path for path in (tmp_path / "P" / "requests").iterdir() if path != file).read_bytes()
    for content in (
        b"",
        b"text",
        whole[:-100],
        whole[: len(whole) // 2],
        whole[:-300] + b"x" * 200 + whole[-100:],
        other,
    ):
        file.write_bytes(content)
        with pytest.raises(RequestError, match=file.name):
            Load(str(tmp_path / "P"))(plan_of(file))
    with pytest.raises(RequestError, match=file.name):
        embed(tmp_path / "P", tmp_path / "OUT", runner="local")


def test_the_commands_prepare_and_embed_say_how_to_go_on(media: Path, tmp_path: Path) -> None:
    options = ("--model", "random:tiny", "--runner", "local")
    made = patchwire("prepare", media / "i.png", media / "text.mp4", "--out", tmp_path / "P", *options)
    assert made.returncode == 3
    assert "1 new requests, 1 errors" in made.stdout
    assert f"next:  patchwire embed {tmp_path}/P --out OUT" in made.stdout
    assert "unsupported_media: 1" in patchwire("errors", tmp_path / "P").stdout
    embedded = patchwire(
        "embed", tmp_path / "P", "--out", tmp_path / "OUT", "--runner", "local", "--set", "output.dtype=float16"
    )
    assert embedded.returncode == 3
    assert "1 new rows" in embedded.stdout
    refused = patchwire("embed", tmp_path / "P", "--out", tmp_path / "OUT2", "--set", "frames.fps=1")
    assert refused.returncode == 1
    assert "frames.fps: null there, 1 now" in refused.stderr.replace("1.0", "1")
