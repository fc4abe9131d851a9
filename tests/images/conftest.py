"""All images, built from this checkout, and a cluster whose pods run in them."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from kubernetes import client

from tests.e2e.cluster import Cluster
from tests.images.built import Image, builder_or_skip, mounted
from tests.support.control_planes import EmbeddedControlPlane, Server
from tests.support.helm import Helm

BUILT = "CAPSTAN_IMAGES_TAG"
"""Variable with the tag of images that are there already; without it they are built from this checkout."""
NAMES = ("operator", "flax-trainer", "deepspeed-trainer", "serve-replica", "bench")
BUILD_SECONDS = 3600.0
"""Of all five, none of them there yet: forty minutes were seen on two cores at a load of 20."""
SYSTEM = "capstan-system"


@pytest.fixture(scope="session")
def images() -> Iterator[dict[str, Image]]:
    """By name. Layers stay in buildah's store: what has not changed is not built again."""
    builder_or_skip()
    tag = os.environ.get(BUILT) or _build("tested")
    with ExitStack() as stack:
        yield {name: stack.enter_context(mounted(f"capstan/{name}:{tag}")) for name in NAMES}


def _build(tag: str) -> str:
    build = [sys.executable, "scripts/build_images.py", "--base", "local", "--tag", tag]
    done = subprocess.run(build, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=BUILD_SECONDS)
    assert done.returncode == 0, done.stdout[-4000:]
    return tag


@pytest.fixture(scope="session")
def base(images: dict[str, Image]) -> Iterator[Image]:
    """What they all were built on."""
    with mounted("localhost/capstan/base:bookworm") as image:
        yield image


@pytest.fixture(scope="session")
def cluster(images: dict[str, Image]) -> Iterator[Cluster]:
    """An embedded API server and a node that runs `capstan/*` in those images; the chart is installed as it is.

    What ran where is in `<home>/ran.jsonl`.
    """
    with tempfile.TemporaryDirectory(prefix="capstan-images-") as folder, ExitStack() as stack:
        home = Path(folder)
        plane = EmbeddedControlPlane(home / "plane", with_controllers=True)
        stack.enter_context(plane)
        rules = home / "images.yaml"
        rules.write_text(yaml.safe_dump([_rule(image, home) for image in images.values()]))
        node = [sys.executable, "-m", "capstan_local.node", "--kubeconfig", plane.kubeconfig, "--home", home / "node"]
        token = plane.kubeconfig.parent / "kubelet-token"
        server = Server("node", [*node, "--images", rules, "--kubelet-token-file", token], home, dict(os.environ))
        stack.callback(lambda: server.stop(signal.SIGTERM))
        running = Cluster("images", plane.kubeconfig, home / "node", lambda: None)
        server.wait_ready(lambda: _has_ready_node(running))
        helm = Helm(plane, SYSTEM, home)
        helm(
            "Install", release_name="capstan", chart_path="charts/capstan", create_namespace=True, wait=True, timeout=55
        )
        yield running


def _rule(image: Image, home: Path) -> dict[str, object]:
    """For the node: in containers of this image, `python` is a container of runc."""
    folder = home / "programs" / image.name
    folder.mkdir(parents=True)
    program = folder / "python"
    as_container, description = Path(__file__).with_name("as_container.py"), image.description(home)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {as_container} {description} python "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    path = [str(folder), *os.environ["PATH"].split(os.pathsep)]
    # All pods share few cores here.
    return {"pattern": f"capstan/{image.name}", "path": path, "env": {"OMP_NUM_THREADS": "1"}}


def _has_ready_node(cluster: Cluster) -> bool:
    return any(
        condition.type == "Ready" and condition.status == "True"
        for node in client.CoreV1Api(cluster.api).list_node().items
        for condition in node.status.conditions or []
    )
