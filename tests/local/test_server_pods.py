"""What the server does for pods and Services beyond storing them: logs and exec, binding, eviction, addresses."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from capstan_local.server.certificates import ensure_certificates
from tests.support.embedded_server import Embedded, embedded, pod

PODS = "/api/v1/namespaces/default/pods"
SERVICES = "/api/v1/namespaces/default/services"
MERGE = "application/merge-patch+json"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Embedded]:
    async with embedded(tmp_path / "home") as api:
        yield api


class FakeKubelet:
    """A node's HTTPS endpoint that records what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.more = asyncio.Event()
        self.port = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append((request.path, request.query_string, request.headers.get("Authorization", "")))
        if request.path.startswith("/exec/"):
            return await self._echo(request)
        if request.path.endswith("/waiting"):
            return web.Response(status=400, text='container "waiting" in pod "p" is waiting to start\n')
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first line\n")
        if request.query.get("follow") == "true":
            await self.more.wait()
            await response.write(b"second line\n")
        await response.write_eof()
        return response

    async def _echo(self, request: web.BaseRequest) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=["v5.channel.k8s.io"])
        await socket.prepare(request)
        async for message in socket:
            if message.data == b"\x00quit":
                await socket.send_bytes(b'\x03{"status":"Success"}')
                break
            await socket.send_bytes(b"\x01" + message.data[1:].upper())
        await socket.close()
        return socket


@pytest.fixture
async def kubelet(api: Embedded, tmp_path: Path) -> AsyncIterator[FakeKubelet]:
    """The node `n`, with the pod `p` bound to it."""
    fake = FakeKubelet()
    files = ensure_certificates(tmp_path / "kubelet")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    runner = web.ServerRunner(web.Server(fake.handle), shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    fake.port = runner.addresses[0][1]
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": fake.port}},
    }
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "status": status}
    await api.call("POST", "/api/v1/nodes", node, code=201)
    await api.call("POST", PODS, pod("p", nodeName="n"), code=201)
    yield fake
    await runner.cleanup()


async def test_logs_come_from_the_pods_node(api: Embedded, kubelet: FakeKubelet) -> None:
    assert await api.call("GET", f"{PODS}/p/log?tailLines=5&timestamps=true", code=200) == "first line\n"
    path, query, authorization = kubelet.asked[0]
    assert (path, query) == ("/containerLogs/default/p/c", "tailLines=5&timestamps=true")
    assert authorization == f"Bearer {api.plane.kubelet_token}"
    assert api.plane.kubelet_token != api.plane.token


async def test_a_followed_log_arrives_as_it_is_written(api: Embedded, kubelet: FakeKubelet) -> None:
    async with api.session.get(f"{PODS}/p/log?follow=true") as stream:
        assert await stream.content.readline() == b"first line\n"
        kubelet.more.set()
        assert await stream.content.readline() == b"second line\n"
        assert await stream.content.read() == b""


async def test_what_a_node_refuses_is_told_as_a_status(api: Embedded, kubelet: FakeKubelet) -> None:
    two = pod("two", nodeName="n")
    two["spec"]["containers"].append({"name": "waiting", "image": "i"})
    await api.call("POST", PODS, two, code=201)
    status = await api.call("GET", f"{PODS}/two/log?container=waiting", code=400)
    assert status["message"] == 'container "waiting" in pod "p" is waiting to start'
    status = await api.call("GET", f"{PODS}/two/log", code=400)
    assert status["message"] == "a container name must be specified for pod two, choose one of: [c waiting]"
    status = await api.call("GET", f"{PODS}/two/log?container=none", code=400)
    assert status["message"] == "container none is not valid for pod two"


async def test_a_pod_without_a_node_has_an_empty_log_and_one_on_a_dead_node_says_so(api: Embedded) -> None:
    await api.call("POST", PODS, pod("unbound"), code=201)
    assert await api.call("GET", f"{PODS}/unbound/log", code=200) == ""
    await api.call("POST", PODS, pod("lost", nodeName="nowhere"), code=201)
    assert (await api.call("GET", f"{PODS}/lost/log", code=404))["message"] == 'nodes "nowhere" not found'
    port = {"daemonEndpoints": {"kubeletEndpoint": {"Port": 1}}}
    status = {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], **port}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "nowhere"}, "status": status}
    await api.call("POST", "/api/v1/nodes", node, code=201)
    message = (await api.call("GET", f"{PODS}/lost/log", code=500))["message"]
    assert message.startswith('Get "https://127.0.0.1:1/containerLogs/default/lost/c": ')


async def test_exec_joins_the_clients_socket_to_the_nodes(api: Embedded, kubelet: FakeKubelet) -> None:
    path = f"{PODS}/p/exec?command=sh&command=-c&stdin=true&stdout=true&container=c"
    async with api.session.ws_connect(path, protocols=["v5.channel.k8s.io", "v4.channel.k8s.io"]) as socket:
        assert socket.protocol == "v5.channel.k8s.io"
        await socket.send_bytes(b"\x00hello")
        assert await socket.receive_bytes(timeout=10) == b"\x01HELLO"
        await socket.send_bytes(b"\x00quit")
        assert await socket.receive_bytes(timeout=10) == b'\x03{"status":"Success"}'
        assert (await socket.receive(timeout=10)).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
    asked, query, _ = kubelet.asked[0]
    assert (asked, query) == ("/exec/default/p/c", "input=1&output=1&command=sh&command=-c")


async def test_what_cannot_be_joined_is_501(api: Embedded, kubelet: FakeKubelet) -> None:
    del kubelet
    status = await api.call("POST", f"{PODS}/p/exec?command=ls", code=501, Upgrade="SPDY/3.1", Connection="Upgrade")
    assert (status["reason"], status["code"]) == ("NotImplemented", 501)
    await api.call("POST", f"{PODS}/p/portforward?ports=80", code=501)


async def test_binding_happens_once(api: Embedded) -> None:
    await api.call("POST", PODS, pod("b"), code=201)
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": "b"},
        "target": {"kind": "Node", "name": "n"},
    }
    await api.call("POST", f"{PODS}/b/binding", binding, code=201)
    bound = await api.call("GET", f"{PODS}/b", code=200)
    assert bound["spec"]["nodeName"] == "n"
    status = await api.call("POST", "/api/v1/namespaces/default/bindings", binding, code=409)
    assert 'pod b is already assigned to node "n"' in status["message"]


async def test_a_bound_pod_goes_when_its_node_says_so(api: Embedded) -> None:
    await api.call("POST", PODS, pod("g", nodeName="n", terminationGracePeriodSeconds=20), code=201)
    marked = await api.call("DELETE", f"{PODS}/g", code=200)
    assert marked["metadata"]["deletionGracePeriodSeconds"] == 20
    sooner = await api.call("DELETE", f"{PODS}/g?gracePeriodSeconds=5", code=200)
    assert sooner["metadata"]["deletionGracePeriodSeconds"] == 5
    later = await api.call("DELETE", f"{PODS}/g?gracePeriodSeconds=50", code=200)
    assert later == sooner
    await api.call("DELETE", f"{PODS}/g?gracePeriodSeconds=0", code=200)
    await api.call("GET", f"{PODS}/g", code=404)


async def test_an_eviction_respects_disruption_budgets(api: Embedded) -> None:
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "b"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}},
    }
    await api.call("POST", "/apis/policy/v1/namespaces/default/poddisruptionbudgets", budget, code=201)
    ready = {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}
    for name in ("one", "two"):
        await api.call("POST", PODS, pod(name), code=201)
        await api.call("PATCH", f"{PODS}/{name}/status", ready, code=200, content_type=MERGE)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "one"}}
    await api.call("POST", f"{PODS}/one/eviction", eviction, code=201)
    await api.call("GET", f"{PODS}/one", code=404)
    eviction["metadata"] = {"name": "two"}
    status = await api.call("POST", f"{PODS}/two/eviction", eviction, code=429)
    assert status["message"] == "Cannot evict pod as it would violate the pod's disruption budget."
    await api.call("GET", f"{PODS}/two", code=200)


def service(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"ports": [{"port": 80}], **spec},
    }


async def test_services_get_loopback_addresses_of_their_own(api: Embedded) -> None:
    first, second = [await api.call("POST", SERVICES, service(name), code=201) for name in ("a", "b")]
    network = ipaddress.ip_network((api.plane.home / "service-network").read_text().strip())
    assert network.subnet_of(ipaddress.ip_network("127.96.0.0/12"))
    assert (first["spec"]["clusterIP"], second["spec"]["clusterIP"]) == (str(network[1]), str(network[2]))
    assert first["spec"]["clusterIPs"] == [str(network[1])]
    status = await api.call("POST", SERVICES, service("c", clusterIP=str(network[1])), code=422)
    assert "provided IP is already allocated" in status["message"]
    status = await api.call("POST", SERVICES, service("c", clusterIP="10.0.0.1"), code=422)
    assert f"is not in the valid range of {network}" in status["message"]
    headless = await api.call("POST", SERVICES, service("c", clusterIP="None"), code=201)
    assert headless["spec"]["clusterIP"] == "None"
    # An update that leaves the address out keeps it; one that names another is refused.
    del first["spec"]["clusterIP"], first["spec"]["clusterIPs"]
    kept = await api.call("PUT", f"{SERVICES}/a", first, code=200)
    assert kept["spec"]["clusterIP"] == str(network[1])
    kept["spec"]["clusterIP"] = str(network[9])
    status = await api.call("PUT", f"{SERVICES}/a", kept, code=422)
    assert "may not change once set" in status["message"]
    await api.call("DELETE", f"{SERVICES}/a", code=200)
    assert (await api.call("POST", SERVICES, service("d"), code=201))["spec"]["clusterIP"] == str(network[1])


async def test_node_ports_are_given_out_once(api: Embedded) -> None:
    first = await api.call("POST", SERVICES, service("a", type="NodePort"), code=201)
    assert first["spec"]["ports"][0]["nodePort"] == 30000
    taken = service("b", type="NodePort", ports=[{"port": 80, "nodePort": 30000}])
    status = await api.call("POST", SERVICES, taken, code=422)
    assert "provided port is already allocated" in status["message"]


async def test_priority_classes_set_the_priority(api: Embedded) -> None:
    status = await api.call("POST", PODS, pod("p", priorityClassName="high"), code=403)
    assert status["message"] == 'pods "p" is forbidden: no PriorityClass with name high was found'
    high = {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": "high"},
        "value": 7,
        "preemptionPolicy": "Never",
    }
    await api.call("POST", "/apis/scheduling.k8s.io/v1/priorityclasses", high, code=201)
    made = await api.call("POST", PODS, pod("p", priorityClassName="high"), code=201)
    assert (made["spec"]["priority"], made["spec"]["preemptionPolicy"]) == (7, "Never")


async def test_a_service_accounts_token_opens_the_door(api: Embedded) -> None:
    accounts = "/api/v1/namespaces/default/serviceaccounts"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}}
    made = await api.call("POST", f"{accounts}/default/token", request, code=201)
    token = f"Bearer {made['status']['token']}"
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
    found = await api.call("POST", path, review, code=201, Authorization=token)
    assert found["status"]["userInfo"]["username"] == "system:serviceaccount:default:default"
    request["spec"]["expirationSeconds"] = 10
    await api.call("POST", f"{accounts}/default/token", request, code=422)
    await api.call("POST", f"{accounts}/nobody/token", request, code=404)


async def test_pods_of_a_deleted_owner_are_collected_and_others_stay(api: Embedded) -> None:
    owner = await api.call("POST", PODS, pod("owner"), code=201)
    reference = {"apiVersion": "v1", "kind": "Pod", "name": "owner", "uid": owner["metadata"]["uid"]}
    for name in ("owned", "also-owned"):
        dependent = pod(name)
        dependent["metadata"]["ownerReferences"] = [reference]
        await api.call("POST", PODS, dependent, code=201)
    await api.call("POST", PODS, pod("free"), code=201)
    stranger = pod("orphan-from-birth")
    stranger["metadata"]["ownerReferences"] = [{**reference, "uid": "00000000-0000-0000-0000-000000000000"}]
    await api.call("POST", PODS, stranger, code=201)
    await api.gone(f"{PODS}/orphan-from-birth")
    await api.call("DELETE", f"{PODS}/owner", code=200)
    await api.gone(f"{PODS}/owned")
    await api.gone(f"{PODS}/also-owned")
    assert orjson.dumps(await api.call("GET", PODS, code=200)).count(b'"name":"free"') == 1
