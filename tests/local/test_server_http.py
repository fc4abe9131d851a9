"""The server as a process and as an HTTP peer: who is let in, what lasts, what happens to peers that misbehave."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import orjson
import pytest
import yaml

from capstan_local.cluster import HomeInUse, LocalControlPlane
from capstan_local.server import server, watch
from capstan_local.server.event_expiry import delete_older
from tests.support.embedded_server import Embedded, config_map, embedded, eventually

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Embedded]:
    async with embedded(tmp_path / "home") as api:
        yield api


async def test_only_the_owner_can_read_what_lies_in_the_home(api: Embedded) -> None:
    home = api.plane.home
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for name in ("kubeconfig", "token", "kubelet-token", "pki/server.key"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    config = yaml.safe_load((home / "kubeconfig").read_text())
    assert config["clusters"][0]["cluster"]["server"] == api.plane.url
    assert config["users"][0]["user"] == {"token": api.plane.token}


async def test_strangers_see_health_and_version_and_nothing_else(api: Embedded) -> None:
    for path in ("/healthz", "/livez", "/readyz", "/version"):
        await api.call("GET", path, code=200, Authorization="")
    for path in ("/api", "/apis", "/openapi/v3", "/api/v1/namespaces", "/nonsense"):
        for token in ("", "Bearer wrong", f"Basic {api.plane.token}"):
            status = await api.call("GET", path, code=401, Authorization=token)
            assert (status["reason"], status["message"]) == ("Unauthorized", "Unauthorized")


async def test_the_certificate_is_checked_against_the_servers_own_authority(api: Embedded) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=ssl.create_default_context())) as stranger:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await stranger.get(f"{api.plane.url}/healthz")


async def test_identity_and_objects_outlive_the_server(tmp_path: Path) -> None:
    async with embedded(tmp_path) as first:
        made = await first.call("POST", CONFIG_MAPS, config_map("kept", a="1"), code=201)
        token, authority = first.plane.token, first.plane.ca_path.read_bytes()
    async with embedded(tmp_path) as second:
        assert (second.plane.token, second.plane.ca_path.read_bytes()) == (token, authority)
        assert await second.call("GET", f"{CONFIG_MAPS}/kept", code=200) == made
        newer = await second.call("POST", CONFIG_MAPS, config_map("newer"), code=201)
        assert int(newer["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])


async def test_a_home_has_one_server(api: Embedded) -> None:
    with pytest.raises(HomeInUse, match="in use by another API server; stop it or choose another home"):
        async with LocalControlPlane(api.plane.home):
            pass
    await api.call("GET", CONFIG_MAPS, code=200)


async def test_custom_kinds_are_served_again_after_a_restart(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"n": {"type": "integer"}}}}}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"},
            "versions": [version],
        },
    }
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    things = "/apis/example.com/v1/namespaces/default/things"
    async with embedded(tmp_path) as first:
        await first.call("POST", definitions, definition, code=201)
        thing = {"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": {"n": 1}}
        made = await first.call("POST", things, thing, code=201)
    async with embedded(tmp_path) as second:
        assert await second.call("GET", f"{things}/t", code=200) == made
        # A default that came later is shown for the older object.
        schema["properties"]["spec"]["properties"]["m"] = {"type": "integer", "default": 7}
        patch = {"spec": {"versions": [version]}}
        await second.call(
            "PATCH", f"{definitions}/things.example.com", patch, code=200, content_type="application/merge-patch+json"
        )
        assert (await second.call("GET", f"{things}/t", code=200))["spec"] == {"n": 1, "m": 7}
        assert [item["spec"] for item in (await second.call("GET", things, code=200))["items"]] == [{"n": 1, "m": 7}]


async def test_no_acknowledged_write_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    process = subprocess.Popen(  # noqa: ASYNC220 - starting it does not wait for it
        [sys.executable, "-m", "capstan_local", "--home", str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    acknowledged: dict[str, int] = {}
    try:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline)
        config = yaml.safe_load((tmp_path / "kubeconfig").read_text())
        url, token = config["clusters"][0]["cluster"]["server"], config["users"][0]["user"]["token"]
        tls = ssl.create_default_context(cafile=str(tmp_path / "pki" / "ca.crt"))

        async def write(session: aiohttp.ClientSession, worker: int) -> None:
            for at in range(10_000):
                name = f"c-{worker}-{at}"
                async with session.post(CONFIG_MAPS, data=orjson.dumps(config_map(name))) as answer:
                    assert answer.status == 201
                    acknowledged[name] = int(orjson.loads(await answer.read())["metadata"]["resourceVersion"])
                if len(acknowledged) == 200:
                    os.kill(process.pid, signal.SIGKILL)

        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        async with aiohttp.ClientSession(url, headers=headers, connector=aiohttp.TCPConnector(ssl=tls)) as session:
            work = (write(session, worker) for worker in range(8))
            endings = await asyncio.gather(*work, return_exceptions=True)
        assert all(isinstance(ending, aiohttp.ClientError) for ending in endings)
    finally:
        process.kill()
        process.wait()
    assert len(acknowledged) >= 200
    async with embedded(tmp_path) as api:
        listed = await api.call("GET", CONFIG_MAPS, code=200)
        found = {item["metadata"]["name"]: int(item["metadata"]["resourceVersion"]) for item in listed["items"]}
        assert acknowledged.items() <= found.items()
        newer = await api.call("POST", CONFIG_MAPS, config_map("newer"), code=201)
        assert int(newer["metadata"]["resourceVersion"]) > max(found.values())


async def test_a_body_over_three_megabytes_is_413(api: Embedded) -> None:
    status = await api.call("POST", CONFIG_MAPS, b"x" * ((3 << 20) + 1), code=413)
    assert status["reason"] == "RequestEntityTooLarge"


async def test_a_peer_that_stops_sending_is_given_up(api: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_STALLED_SECONDS", 0.2)
    tls = ssl.create_default_context(cafile=str(api.plane.ca_path))
    port = int(api.plane.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    lines = (f"POST {CONFIG_MAPS} HTTP/1.1", "Host: x", f"Authorization: Bearer {api.plane.token}", "Content-Length: 9")
    writer.write("\r\n".join((*lines, "", "{")).encode())
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()


async def test_a_watcher_that_reads_too_slowly_is_dropped(api: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_MOST_UNREAD", 0)
    async with api.session.get(f"{CONFIG_MAPS}?watch=true") as stream:
        line = await stream.content.readline()
        assert orjson.loads(line)["type"] == "ADDED"
        await api.call("POST", CONFIG_MAPS, config_map("too-much"), code=201)
        async with asyncio.timeout(10):
            assert await stream.content.read() == b""


async def test_watches_end_when_the_server_stops(tmp_path: Path) -> None:
    async with embedded(tmp_path) as api:
        stream = await api.session.get(f"{CONFIG_MAPS}?watch=true&resourceVersion=0")
        reading = asyncio.create_task(stream.content.read())
        await asyncio.sleep(0.1)
        await api.plane.__aexit__(None, None, None)
        async with asyncio.timeout(10):
            assert b'"type":"ADDED"' in await reading


async def test_a_warning_is_sent_for_each_unknown_field(api: Embedded) -> None:
    body = orjson.dumps({**config_map("c"), "extra": 1})
    async with api.session.post(CONFIG_MAPS, data=body, headers={"Content-Type": "application/json"}) as answer:
        assert answer.status == 201
        assert answer.headers.getall("Warning") == ['299 - "unknown field \\"extra\\""']
        assert "extra" not in orjson.loads(await answer.read())
    status = await api.call("POST", f"{CONFIG_MAPS}?fieldValidation=Strict", {**config_map("d"), "extra": 1}, code=400)
    assert status["message"].endswith('strict decoding error: unknown field "extra"')


async def test_namespaces_are_furnished_and_emptied(api: Embedded) -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}
    await api.call("POST", "/api/v1/namespaces", namespace, code=201)

    async def furnished() -> bool:
        async with (
            api.session.get("/api/v1/namespaces/n/serviceaccounts/default") as account,
            api.session.get("/api/v1/namespaces/n/configmaps/kube-root-ca.crt") as authority,
        ):
            return account.status == authority.status == 200

    await eventually(furnished)
    held = config_map("held")
    held["metadata"]["finalizers"] = ["example.com/hold"]
    await api.call("POST", "/api/v1/namespaces/n/configmaps", held, code=201)
    going = await api.call("DELETE", "/api/v1/namespaces/n", code=200)
    assert going["status"]["phase"] == "Terminating"

    async def waits() -> str | None:
        current = await api.call("GET", "/api/v1/namespaces/n", code=200)
        messages = [found["message"] for found in current["status"].get("conditions", [])]
        return messages[0] if messages else None

    assert "configmaps. has 1 resource instances" in await eventually(waits)
    await api.call("POST", "/api/v1/namespaces/n/configmaps", config_map("late"), code=403)
    release = {"metadata": {"finalizers": None}}
    path = "/api/v1/namespaces/n/configmaps/held"
    await api.call("PATCH", path, release, code=200, content_type="application/merge-patch+json")
    await api.gone("/api/v1/namespaces/n")


async def test_events_last_an_hour(api: Embedded) -> None:
    def event(name: str, minutes_ago: int) -> dict:
        moment = datetime.now(UTC) - timedelta(minutes=minutes_ago)
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name},
            "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
            "lastTimestamp": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

    events = "/api/v1/namespaces/default/events"
    await api.call("POST", events, event("old", 90), code=201)
    await api.call("POST", events, event("new", 30), code=201)
    plane = api.plane
    assert plane._store is not None
    assert await delete_older(plane._store, plane._catalog, datetime.now(UTC) - timedelta(hours=1)) == 1
    left = await api.call("GET", events, code=200)
    assert [item["metadata"]["name"] for item in left["items"]] == ["new"]
