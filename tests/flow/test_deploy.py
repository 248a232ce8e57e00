"""The manifests for KubeRay, as far as they can be checked without a Kubernetes: what they say has to be true here."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from fsspec.registry import known_implementations
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.config import load_config
from pipeline.flow.cluster import SPILL_FROM

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def cluster_spec(name: str) -> dict[str, Any]:
    found = manifest(name)["spec"]
    return found if name == "raycluster.yaml" else found["rayClusterSpec"]


def groups(name: str) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in cluster_spec(name)["workerGroupSpecs"]}


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    return only


def entrypoint() -> list[str]:
    return shlex.split(manifest("rayjob.yaml")["spec"]["entrypoint"])


def settings() -> dict[str, str]:
    words = entrypoint()
    pairs = [words[place + 1].split("=") for place, word in enumerate(words) if word == "--set"]
    return dict(pairs)


def gibibytes(text: str) -> int:
    assert text.endswith("Gi")
    return int(text[:-2]) << 30


BOTH = pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])


@BOTH
def test_a_manifest_has_what_the_v1_api_requires(name: str) -> None:
    found = manifest(name)
    assert found["apiVersion"] == "ray.io/v1"
    assert found["kind"] == {"raycluster.yaml": "RayCluster", "rayjob.yaml": "RayJob"}[name]
    assert {"name", "generateName"} & found["metadata"].keys()
    spec = cluster_spec(name)
    assert spec.keys() == {
        "rayVersion",
        "authOptions",
        "enableInTreeAutoscaling",
        "autoscalerOptions",
        "headGroupSpec",
        "workerGroupSpecs",
    }
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        resources = container(group)["resources"]
        assert resources["requests"] == resources["limits"]
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@BOTH
def test_ray_asks_for_its_token_and_the_operator_that_is_named_knows_how(name: str) -> None:
    spec = cluster_spec(name)
    assert spec["authOptions"] == {"mode": "token"}
    assert tuple(map(int, spec["rayVersion"].split("."))) >= (2, 52, 0)  # what the operator wants for that mode
    assert "operator and CRDs 1.5.1 or later" in (DEPLOY / name).read_text(encoding="utf-8")
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & {entry["name"] for entry in container(group).get("env", [])}


def test_the_job_makes_the_cluster_that_stands_alone_and_gives_it_back() -> None:
    assert cluster_spec("rayjob.yaml") == cluster_spec("raycluster.yaml")
    spec = manifest("rayjob.yaml")["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["submissionMode"] == "K8sJobMode"


@BOTH
def test_ray_and_patchwire_are_of_the_versions_that_are_installed(name: str) -> None:
    pyproject = (DEPLOY.parent / "pyproject.toml").read_text(encoding="utf-8")
    version = next(line.split('"')[1] for line in pyproject.splitlines() if line.startswith("version"))
    spec = cluster_spec(name)
    assert "ray[data,default]>=" + ".".join(spec["rayVersion"].split(".")[:2]) in pyproject
    everyone = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    assert {container(group)["image"] for group in everyone} == {f"patchwire:{version}"}


def test_the_entrypoint_is_a_command_that_exists_with_settings_that_are_accepted() -> None:
    words = entrypoint()
    assert words[:4] == ["python", "-m", "pipeline", "embed"]
    usage = CliRunner().invoke(app, ["embed", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    assert all(word in usage for word in words if word.startswith("--"))
    preset = words[words.index("--config") + 1]
    config = load_config(preset, [f"{key}={value}" for key, value in settings().items()])
    assert config.encode.device == "cuda"


@pytest.mark.parametrize("name", ["deploy/raycluster.yaml", "deploy/rayjob.yaml", "README.md"])
def test_what_is_told_to_install_reads_the_urls_that_the_command_names(name: str) -> None:
    text = (DEPLOY.parent / name).read_text(encoding="utf-8")
    if name == "README.md":
        text = text.partition("## On a cluster")[2].partition("\n## ")[0]
    (extra,) = re.findall(r"pip install '\.\[(\w+)\]'", text)
    assert "`pip install .`" not in text
    pyproject = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {re.split(r"[<>=\[]", wanted)[0] for wanted in pyproject["project"]["optional-dependencies"][extra]}
    schemes = {word.partition("://")[0] for word in entrypoint() if "://" in word}
    assert schemes == set(re.findall(r"(\w+)://bucket", text)) or name == "deploy/raycluster.yaml"
    assert {known_implementations[scheme]["class"].partition(".")[0] for scheme in schemes} == packages


@BOTH
def test_every_gpu_has_an_encode_actor_and_every_other_core_at_full_size_a_decode_actor(name: str) -> None:
    spec, found = cluster_spec(name), groups(name)
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert found["gpu"]["rayStartParams"]["num-cpus"] == "0"
    assert found["gpu"]["minReplicas"] == found["gpu"]["maxReplicas"]
    num_gpus = int(container(found["gpu"])["resources"]["limits"]["nvidia.com/gpu"])
    assert num_gpus == int(found["gpu"]["rayStartParams"]["num-gpus"])
    assert settings()["ray.encode_workers"] == str(num_gpus * found["gpu"]["maxReplicas"])
    cores = int(container(found["cpu"])["resources"]["limits"]["cpu"]) * found["cpu"]["maxReplicas"]
    decoding = float(settings()["ray.decode_cores"]) * int(settings()["ray.decode_workers"])
    assert cores - 1 == decoding  # the writer's place is on the last one


@BOTH
def test_object_stores_lie_in_memory_and_hold_sixteen_requests_a_gpu(name: str) -> None:
    request_bytes = load_config("cluster").request.max_patches * 1536
    for group in groups(name).values():
        store_bytes = int(group["rayStartParams"]["object-store-memory"])
        (volume,) = group["template"]["spec"]["volumes"]
        (mount,) = container(group)["volumeMounts"]
        assert (mount["mountPath"], mount["name"]) == ("/dev/shm", volume["name"])
        assert volume["emptyDir"]["medium"] == "Memory"
        assert store_bytes < gibibytes(volume["emptyDir"]["sizeLimit"])
        assert store_bytes < gibibytes(container(group)["resources"]["limits"]["memory"]) / 2
        assert store_bytes >= 16 * request_bytes * int(group["rayStartParams"].get("num-gpus", 1))


@BOTH
def test_workers_spill_from_where_a_ray_that_is_started_here_does(name: str) -> None:
    for group in groups(name).values():
        assert container(group)["env"] == [{"name": "RAY_object_spilling_threshold", "value": str(SPILL_FROM)}]
