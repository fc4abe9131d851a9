"""The images themselves: built, and run as pods run them. Minutes, so not part of `make test`."""

from __future__ import annotations

import hashlib
import http.client
import json
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client
from scripts.build_images import project, read_pip_settings

from tests.e2e.benchmarks import claim_of_benchmarks
from tests.e2e.benchmarks import run as run_benchmark
from tests.e2e.cluster import GROUP, NAMESPACE, VERSION, Cluster
from tests.e2e.services import Service
from tests.images.as_container import oci_config
from tests.images.built import Image, run
from tests.images.conftest import NAMES

pytestmark = pytest.mark.full

OPERATOR_BYTES = 250 * 10**6
ENVIRONMENT = Path("/opt/capstan")
CLAIM = "benchmarks-in-images"
PRIVATE = (Path("/etc/pip.conf"), Path("/root/.config/pip/pip.conf"), Path("/etc/ssl/certs/ca-certificates.crt"))
PROBE = """
import json, os, sys, tempfile
from importlib.metadata import distributions

def writes(folder):
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False

status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "user": os.getuid(),
    "group": os.getgid(),
    "capabilities": int(status["CapEff"], 16) | int(status["CapPrm"], 16) | int(status["CapBnd"], 16),
    "writable": [folder for folder in ("/", "/opt/capstan", "/etc", "/tmp", os.path.expanduser("~")) if writes(folder)],
    "installed": sorted({found.name.lower() for found in distributions()}),
    "prefix": sys.prefix,
}))
"""


def in_container(image: Image, folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """What `argv` does in a container of the image, as a pod would have it, without volumes."""
    bundle = folder / "bundle"
    bundle.mkdir(exist_ok=True)
    description = json.loads(image.description(folder).read_text())
    (bundle / "config.json").write_text(json.dumps(oci_config(description, {"HOSTNAME": "alone"}, {}, argv)))
    runc = ["runc", "--root", folder / "runc", "run", "--bundle", bundle, image.name]
    return subprocess.run(list(map(str, runc)), capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_runs_as_nobody_on_a_root_that_cannot_be_written(
    images: dict[str, Image], tmp_path: Path, name: str
) -> None:
    done = in_container(images[name], tmp_path, "python", "-c", PROBE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    installed = set(found.pop("installed"))
    assert found == {
        "user": 65532,
        "group": 65532,
        "capabilities": 0,
        "writable": ["/tmp", "/tmp"],
        "prefix": str(ENVIRONMENT),
    }
    listed = json.loads((images[name].root / "opt/capstan/sbom.cdx.json").read_text())
    names = {listed["metadata"]["component"]["name"], *(part["name"].lower() for part in listed["components"])}
    assert installed == names
    assert json.loads(Path(f"build/sbom/{name}.json").read_text()) == listed


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_machine_that_built_an_image_is_in_it(images: dict[str, Image], base: Image, name: str) -> None:
    """Its certificates and pip's configuration are mounted while it is built. The last stage adds one folder to the
    base and runs nothing, so what is there now is all there ever was in a layer."""
    root = images[name].root
    assert _files(root, but=ENVIRONMENT) == _files(base.root, but=ENVIRONMENT)
    for place in (*PRIVATE, Path("/run/secrets"), Path("/opt/tools"), *read_pip_settings().folders):
        of_base = base.root / place.relative_to("/")
        assert _digest(root / place.relative_to("/")) == _digest(of_base), place
    # What an installer keeps of where a package came from: of ours, a wheel that was built beside it.
    origins = [json.loads(file.read_text())["url"] for file in (root / "opt/capstan").rglob("direct_url.json")]
    assert origins == [f"file:///opt/tools/wheels/capstan-{project()['version']}-py3-none-any.whl"]


def _files(root: Path, but: Path) -> set[str]:
    found = run("find", root, "-path", root / but.relative_to("/"), "-prune", "-o", "-printf", "%P %s %m %U\n")
    return set(found.splitlines())


def _digest(path: Path) -> str | None:
    """None: there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def test_the_operators_image_is_small(images: dict[str, Image]) -> None:
    assert int(run("du", "--summarize", "--bytes", images["operator"].root).split()[0]) < OPERATOR_BYTES


@pytest.mark.parametrize("framework", ["flax", "deepspeed"])
def test_an_example_trains_and_what_it_ends_with_is_served(cluster: Cluster, framework: str) -> None:
    name = f"digits-{framework}"
    cluster.apply_file(Path(f"examples/{name}/job.yaml"))
    status = cluster.wait_phase(name, "Succeeded", 600)
    assert status["restarts"]["total"] == 0
    assert containers(cluster, name) == {(f"{framework}-trainer", f"{name}-worker-{index}") for index in (0, 1)}

    service = Service(cluster, f"served-{framework}")
    spec = {"modelRef": {"trainingJob": {"name": name}}, "replicas": 1}
    service.create(
        {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "InferenceService",
            "metadata": {"name": service.name},
            "spec": spec,
        }
    )
    url = service.wait("serving", lambda status: status.get("ready") == "1/1")["url"]
    answer = ask(url, f"/v2/models/{service.name}/infer", Path("examples/digits-service/requests/seven.json"))
    assert {output["name"]: output["data"] for output in answer["outputs"]}["label"] == [7]
    assert {image for image, _ in containers(cluster, service.name)} == {"serve-replica"}
    service.delete()
    cluster.delete_job(name)


def containers(cluster: Cluster, prefix: str) -> set[tuple[str, str]]:
    """(image, pod) of all that ran in pods whose name begins so."""
    lines = map(json.loads, (cluster.home.parent / "ran.jsonl").read_text().splitlines())
    return {(line["image"], line["pod"]) for line in lines if line["pod"].startswith(prefix)}


def ask(url: str, path: str, body: Path) -> Any:
    """What is answered, which must be good."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
    connection.request("POST", path, body.read_bytes(), {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    assert response.status == 200, answer
    return answer


@pytest.fixture(scope="module")
def claimed(cluster: Cluster) -> Iterator[Cluster]:
    with claim_of_benchmarks(cluster, CLAIM):
        yield cluster


MODEL = {
    "name": "mlp",
    "architecture": {"mlp": {"hidden": [64]}},
    "input": {"vector": {"features": 64, "classes": 10}},
    "batchSize": 8,
}


@pytest.mark.parametrize(("runtime", "image"), [("flax", "flax-trainer"), ("torch", "deepspeed-trainer")])
def test_a_framework_is_measured_in_its_trainers_image_and_reported_in_the_one_of_benchmarks(
    claimed: Cluster, runtime: str, image: str
) -> None:
    name = f"roof-{runtime}"
    workload = {"roofline": {"runtime": runtime, "matrixSizes": [128], "seconds": 0.1, "models": [MODEL]}}
    _, folder = run_benchmark(claimed, CLAIM, name, workload)
    assert {path.name for path in folder.iterdir()} >= {"report.html", "report.md", "metrics.prom", "result.json"}
    assert {image for image, _ in containers(claimed, name)} == {image, "bench"}


def test_checkpoints_of_both_frameworks_are_compared_in_the_image_that_has_both(claimed: Cluster) -> None:
    workload = {"checkpoint": {"state": "1MiB", "beside": ["TorchDCP", "Orbax"], "runtime": "torch"}}
    run_benchmark(claimed, CLAIM, "libraries", workload)
    assert {image for image, _ in containers(claimed, "libraries")} == {"serve-replica", "bench"}


def test_the_control_plane_is_measured_in_the_image_of_benchmarks(claimed: Cluster) -> None:
    documents = list(yaml.safe_load_all(Path("examples/bench-control-plane/bench.yaml").read_text()))
    rbac, core = client.RbacAuthorizationV1Api(claimed.api), claimed.core
    for document in documents:
        match document["kind"]:
            case "ServiceAccount":
                core.create_namespaced_service_account(NAMESPACE, document)
            case "Role":
                rbac.create_namespaced_role(NAMESPACE, document)
            case "RoleBinding":
                rbac.create_namespaced_role_binding(NAMESPACE, document)
    pods = documents[-1]["spec"]["pods"]
    run_benchmark(claimed, CLAIM, "plane", {"controlPlane": {"jobs": 5, "workers": 1}}, pods=pods)
    assert {image for image, _ in containers(claimed, "plane")} == {"bench"}
