"""A pod as the operator builds it, on a node: mounted, probed and reached over TLS."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from capstan_local.client import NAMESPACES, SECRETS, Access, Client
from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.api.inference_service_status import ModelStatus
from capstan_operator.build.serving_revision import build_config_secret, build_revision
from capstan_operator.observe import OperatorSettings
from capstan_runtime.contract import env
from tests.support.certificates import Authority, Pair, serial_of
from tests.support.control_planes import ControlPlane
from tests.support.local_node import SECONDS, eventually, node_running
from tests.support.looks import make_job, root

NAMESPACE, SECRET, HOST = "tls", "digits-tls", "digits.tls.svc"
REPOSITORY = Path(__file__).parents[2]
MODEL = {
    "source": "trainingJob digits",
    "run": "tls/digits/7f3a",
    "digest": root(200),
    "framework": "torch",
    "store": {"object": {"url": "s3://bucket/prefix"}},
}


def scripted(script: list[list[str]]) -> dict[str, Any]:
    """A podPatch: Ray is scripted."""
    command = [sys.executable, "-m", "tests.serve_replica.scripted_pod", json.dumps(script)]
    variables = [{"name": "PYTHONPATH", "value": ":".join([str(REPOSITORY), *filter(None, sys.path)])}]
    return {"spec": {"containers": [{"name": "server", "command": command, "env": variables}]}}


def tls_secret(pair: Pair) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET, "namespace": NAMESPACE},
        "type": "kubernetes.io/tls",
        "data": {name: base64.b64encode(content).decode() for name, content in pair.files.items()},
    }


async def test_a_built_pod_is_probed_over_tls_and_follows_its_secret(embedded_control_plane: ControlPlane) -> None:
    authority = Authority()
    first, renewed = authority.issue(names=(HOST,)), authority.issue(names=(HOST,))
    spec = InferenceServiceSpec.parse(
        {
            "modelRef": {"trainingJob": {"name": "digits"}},
            "tls": {"secretRef": {"name": SECRET}},
            "image": "local/host",
            "podPatch": scripted([["hold"]]),
        }
    )
    owner = make_job(namespace=NAMESPACE)
    revision = build_revision(owner, spec, ModelStatus.parse(MODEL), "torch", OperatorSettings())
    built, config = revision.template["spec"], build_config_secret(owner, revision)
    config["metadata"].pop("ownerReferences")  # nobody owns it here

    def serial(address: str) -> int:
        raw = socket.create_connection((address, env.SERVE_PORT), timeout=SECONDS)
        with authority.client().wrap_socket(raw, server_hostname=HOST) as connection:
            return serial_of(connection)

    with tempfile.TemporaryDirectory(prefix="n") as home:
        async with Client(Access.from_kubeconfig(embedded_control_plane.kubeconfig)) as client:
            namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
            await client.create(NAMESPACES, namespace)
            await client.create(SECRETS, config)
            await client.create(SECRETS, tls_secret(first))
            async with node_running(client, Path(home), "tls-node") as node:
                pod = await node.create(NAMESPACE, "p", *built["containers"], volumes=built["volumes"])
                seen = await node.wait(
                    pod, lambda seen: (seen["status"].get("containerStatuses") or [{}])[0].get("started"), 2 * SECONDS
                )
                assert seen["status"]["containerStatuses"][0]["ready"] is False
                address = seen["status"]["podIP"]
                assert await asyncio.to_thread(serial, address) == first.serial
                await client.patch(SECRETS, (NAMESPACE, SECRET), {"data": tls_secret(renewed)["data"]})

                async def is_renewed() -> bool:
                    return await asyncio.to_thread(serial, address) == renewed.serial

                await eventually(is_renewed)
