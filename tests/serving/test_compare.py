"""A canary compares its answers with the proven revision's: two applications, each behind an HTTP server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import orjson
import pytest

from capstan_local.node.proxy import Relay
from capstan_runtime.contract.serving import Audit, Auth, Compare, Guards, LocalObjectReference, RateLimit, ServeConfig
from capstan_runtime.errors import ConfigError
from capstan_runtime.serve_replica.tls import follow_certificate
from capstan_runtime.serving.app import Application, make_app
from tests.serve_replica.servers import serve as serve_replica
from tests.serving.asgi import Client, decoder_app, metric, running
from tests.serving.conftest import Serve
from tests.serving.models import Floats, NumpyClassifier, NumpyDecoder, WrongClassifier, serve_config
from tests.support.certificates import Authority, MountedSecret

SECONDS = 60.0
ROW = [0.0, 1.0, 2.0, 3.0]
MIRRORED = {"capstan-mirrored": "1"}
AUTH = Guards(auth=Auth(api_keys_secret_ref=LocalObjectReference(name="keys")))
EVERY = 1e9
"""Requests a second: all of them are compared."""
PROTOCOLS = (("OpenInference", "KServeV1"), ("OpenInference",), ("KServeV1",))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def config(
    version: str,
    url: str | None = None,
    guards: Guards | None = None,
    protocols: Sequence[str] = PROTOCOLS[0],
    most_per_second: float = EVERY,
) -> ServeConfig:
    base = serve_config(guards, protocols)
    compare = None if url is None else Compare(url=url, most_per_second=most_per_second)
    return base.model_copy(update={"model": base.model.model_copy(update={"version": version}), "compare": compare})


def proven_app(model: NumpyClassifier | None = None, guards: Guards | None = None, **more: Any) -> Application:
    return make_app(config("digits-proven-1", guards=guards), model or NumpyClassifier(), **more)


def canary_app(url: str, model: NumpyClassifier | None = None, **more: Any) -> Application:
    return make_app(config("digits-canary-1", url), model or NumpyClassifier(), **more)


class Counts:
    """What an application has counted, over HTTP or without."""

    def __init__(self, read: Callable[[], Awaitable[bytes]]) -> None:
        self._ask = read

    async def _read(self) -> bytes:
        """As soon as it is told: a client may ask ten times a second."""
        async with asyncio.timeout(SECONDS):
            while (text := await self._ask()).startswith(b'{"error":"more than'):
                await asyncio.sleep(0.1)
        return text

    async def compared(self) -> dict[str, int]:
        text = await self._read()
        results = ("same", "different", "failed", "dropped")
        counts = {name: int(metric(text, f'capstan_serving_compared_total{{result="{name}"}}')) for name in results}
        return {name: count for name, count in counts.items() if count}

    async def of(self, name: str) -> float:
        return metric(await self._read(), f"capstan_serving_{name}")

    async def mirrored(self, outcome: str = "ok") -> float:
        return await self.of(f'mirrored_requests_total{{outcome="{outcome}"}}')

    async def until_compared(self, count: int) -> dict[str, int]:
        """The results, as soon as there are so many."""
        async with asyncio.timeout(SECONDS):
            while sum((counts := await self.compared()).values()) < count:
                await asyncio.sleep(0.005)
        return counts


def counts_in(client: Client) -> Counts:
    async def read() -> bytes:
        return (await client.request("GET", "/metrics")).body

    return Counts(read)


@asynccontextmanager
async def counts_at(url: str) -> AsyncIterator[Counts]:
    async with aiohttp.ClientSession() as session:

        async def read() -> bytes:
            async with session.get(f"{url}/metrics") as response:
                return await response.read()

        yield Counts(read)


def oip_body(rows: Any, *outputs: str, is_binary: bool) -> tuple[bytes, dict[str, str]]:
    document: dict[str, Any] = {"inputs": [{"name": "input", "shape": [len(rows), 4], "datatype": "FP32"}]}
    document["outputs"] = [{"name": name, "parameters": {"binary_data": is_binary}} for name in outputs]
    if not is_binary:
        document["inputs"][0]["data"] = rows
        return orjson.dumps(document), {}
    raw = np.array(rows, "<f4").tobytes()
    document["inputs"][0]["parameters"] = {"binary_data_size": len(raw)}
    head = orjson.dumps(document)
    return head + raw, {"Inference-Header-Content-Length": str(len(head))}


ASKS: dict[str, tuple[str, Callable[[Any], tuple[bytes, dict[str, str]]]]] = {
    "as JSON": ("/v2/models/digits/infer", lambda rows: oip_body(rows, "label", is_binary=False)),
    "as bytes": ("/v2/models/digits/infer", lambda rows: oip_body(rows, "label", is_binary=True)),
    "for the energy alone": ("/v2/models/digits/infer", lambda rows: oip_body(rows, "energy", is_binary=True)),
    "of this version": (
        "/v2/models/digits/versions/digits-canary-1/infer",
        lambda rows: oip_body(rows, "label", is_binary=False),
    ),
    "in KServe's form": ("/v1/models/digits:predict", lambda rows: (orjson.dumps({"instances": rows}), {})),
}


SPOKEN = [
    (form, protocols)
    for form, (path, _) in ASKS.items()
    for protocols in PROTOCOLS
    if ("KServeV1" if path.startswith("/v1") else "OpenInference") in protocols
]


@pytest.mark.parametrize(("form", "protocols"), SPOKEN)
async def test_however_it_is_asked_a_canary_counts_how_often_it_agrees(
    serve: Serve, form: str, protocols: tuple[str, ...]
) -> None:
    path, body_of = ASKS[form]
    proven = serve(make_app(config("digits-proven-1", protocols=protocols), NumpyClassifier()))
    canary = serve(make_app(config("digits-canary-1", proven, protocols=protocols), WrongClassifier()))
    rows = np.random.default_rng(3).standard_normal((12, 4), np.float32)
    wrong = int((rows[:, 0] > 0).sum())
    assert 0 < wrong < 12
    async with aiohttp.ClientSession() as session, counts_at(canary) as counts:
        for asked, row in enumerate(rows, start=1):
            body, headers = body_of([row.tolist()])
            async with session.post(canary + path, data=body, headers=headers) as response:
                assert response.status == 200
            await counts.until_compared(asked)
        assert await counts.compared() == {"same": 12 - wrong, "different": wrong}


async def test_of_a_request_with_many_samples_one_is_compared(serve: Serve) -> None:
    proven_model = NumpyClassifier()
    app = canary_app(serve(proven_app(proven_model)), WrongClassifier())
    rows = [[sign, 1.0, 2.0, 3.0] for sign in [1.0, -1.0] * 32]
    async with running(app) as client:
        for asked in range(1, 31):
            assert (await client.infer(rows)).status == 200
            counts = await counts_in(client).until_compared(asked)
    assert set(proven_model.batches) == {1}
    assert counts.keys() == {"same", "different"}, "thirty times the same sign by chance: once in 500 million"
    assert sum(counts.values()) == 30


async def test_clients_do_not_wait_for_a_proven_revision_that_hangs(serve: Serve) -> None:
    hanging, go_on = NumpyClassifier(), threading.Event()
    proven = serve(proven_app(hanging))
    hanging.on_call = lambda inputs: (go_on.wait(SECONDS), None)[1]
    try:
        async with running(canary_app(proven)) as client:
            counts = counts_in(client)
            answers = [(await client.infer([ROW])).status for _ in range(30)]
            assert answers == [200] * 30
            assert await counts.compared() == {"dropped": 10}, "four are under way and sixteen wait"
            go_on.set()
            assert await counts.until_compared(30) == {"same": 20, "dropped": 10}
    finally:
        go_on.set()


async def test_at_the_end_what_was_not_compared_is_dropped_and_nothing_goes_on(serve: Serve) -> None:
    hanging, go_on = NumpyClassifier(), threading.Event()
    proven = serve(proven_app(hanging))
    hanging.on_call = lambda inputs: (go_on.wait(SECONDS), None)[1]
    before = asyncio.all_tasks()
    try:
        app = canary_app(proven)
        async with running(app) as client:
            assert [(await client.infer([ROW])).status for _ in range(10)] == [200] * 10
        assert await counts_in(Client(app)).compared() == {"dropped": 10}
        assert asyncio.all_tasks() == before
    finally:
        go_on.set()


def keys_in(folder: Path, **keys: str) -> Path:
    folder.mkdir()
    for client, key in keys.items():
        (folder / client).write_text(key)
    return folder


@pytest.mark.parametrize("headers", [{"authorization": "Bearer älice"}, {"x-api-key": "älice"}])
async def test_the_proven_revision_is_asked_with_the_clients_key(
    serve: Serve, tmp_path: Path, headers: dict[str, str]
) -> None:
    keys = keys_in(tmp_path / "keys", alice="älice")
    records: list[bytes] = []
    guards = AUTH.model_copy(update={"audit": Audit()})
    proven = serve(proven_app(guards=guards, api_keys=keys, audit_sink=records.append))
    app = make_app(config("digits-canary-1", proven, AUTH), NumpyClassifier(), api_keys=keys)
    utf8 = {name: value.encode().decode("latin-1") for name, value in headers.items()}
    async with running(app) as client, counts_at(proven) as counts:
        assert (await client.infer([ROW], {**utf8, "x-request-id": "mine-1"})).status == 200
        assert await counts_in(client).until_compared(1) == {"same": 1}
        assert await counts.mirrored() == 1
        async with asyncio.timeout(SECONDS):
            while b"mine-1" not in b"".join(records):
                await asyncio.sleep(0.01)
    lines = [orjson.loads(line) for line in b"".join(records).splitlines()]
    assert [(line["client"], line["request_id"], line["mirrored"]) for line in lines[1:]] == [("alice", "mine-1", True)]


async def test_who_has_no_key_is_neither_answered_nor_compared(serve: Serve, tmp_path: Path) -> None:
    keys = keys_in(tmp_path / "keys", alice="right")
    proven = serve(proven_app(guards=AUTH, api_keys=keys))
    app = make_app(config("digits-canary-1", proven, AUTH), NumpyClassifier(), api_keys=keys)
    async with running(app) as client, counts_at(proven) as counts:
        assert (await client.infer([ROW], {"x-api-key": "wrong"})).status == 401
        assert (await client.infer([[1.0]], {"x-api-key": "right"})).status == 400
        assert (await client.infer([ROW], {"x-api-key": "right"})).status == 200
        assert await counts_in(client).until_compared(1) == {"same": 1}
        assert [await counts.mirrored(), await counts.mirrored("unauthorized")] == [1, 0]


async def test_what_is_mirrored_is_in_no_number_that_gates_judge_and_not_mirrored_again(serve: Serve) -> None:
    third = serve(make_app(config("digits-third-1"), NumpyClassifier()))
    proven = serve(make_app(config("digits-proven-1", third), NumpyClassifier()))
    async with running(canary_app(proven)) as client, counts_at(proven) as counts, counts_at(third) as others:
        for asked in range(1, 6):
            await client.infer([ROW])
            await counts_in(client).until_compared(asked)
        assert await counts_in(client).of('requests_total{outcome="ok"}') == 5
        assert await counts.mirrored() == 5
        assert await counts.of('requests_total{outcome="ok"}') == 0
        assert await counts.of("latency_seconds_count") == 0
        # A client's own request is compared with the third, before which anything mirrored would have come.
        async with aiohttp.ClientSession() as session:
            body = orjson.dumps({"instances": [ROW]})
            async with session.post(f"{proven}/v1/models/digits:predict", data=body) as response:
                assert response.status == 200
        assert await counts.until_compared(1) == {"same": 1}
        assert await others.mirrored() == 1
        assert await counts.of('requests_total{outcome="ok"}') == 1


async def test_a_client_that_says_it_is_mirrored_evades_no_guard(tmp_path: Path) -> None:
    keys = keys_in(tmp_path / "keys", alice="key")
    guards = AUTH.model_copy(update={"rate_limit": RateLimit(requests=2, seconds=60)})
    async with running(proven_app(guards=guards, api_keys=keys)) as client:
        counts = counts_in(client)
        assert (await client.infer([ROW], MIRRORED)).status == 401
        statuses = [(await client.infer([ROW], {"x-api-key": "key", **MIRRORED})).status for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert (await client.infer([ROW], {"x-api-key": "key"})).status == 429
        told = [await counts.mirrored(outcome) for outcome in ("ok", "unauthorized", "shed")]
        assert told == [2, 1, 1]


async def test_with_tls_the_proven_revision_is_known_by_the_certificate_that_all_pods_show(tmp_path: Path) -> None:
    authority, clock, lines = Authority(), Clock(), list[str]()
    old, new = (authority.issue("127.0.0.1", kind="ec") for _ in range(2))
    ours, theirs = (MountedSecret(tmp_path / name, old.files) for name in ("ours", "theirs"))
    model, seen = NumpyClassifier(), list[Floats]()
    port, _ = serve_replica(model, 0.0, follow_certificate(theirs.folder, "theirs", lines.append, clock))
    model.on_call = lambda inputs: seen.append(inputs)
    app = canary_app(f"https://127.0.0.1:{port}", clock=clock, certificate=ours.folder, log=lines.append)
    async with running(app) as client:

        async def ask() -> None:
            clock.now += 2.0
            assert (await client.infer([ROW])).status == 200

        counts = counts_in(client)
        await ask()
        assert await counts.until_compared(1) == {"same": 1}
        theirs.swap(new.files)
        await ask()
        assert await counts.until_compared(2) == {"same": 1, "failed": 1}
        assert (len(seen), len(lines)) == (1, 1), "it was asked nothing"
        assert "ServerFingerprintMismatch" in lines[0]
        ours.swap({"tls.crt": b"", "tls.key": new.key})
        await ask()
        assert await counts.until_compared(3) == {"same": 1, "failed": 2}
        ours.swap(new.files)
        await ask()
        assert await counts.until_compared(4) == {"same": 2, "failed": 2}
    assert [line.partition(": ")[0] for line in lines] == ["comparing with the proven revision fails", "comparing"]


async def test_after_its_promotion_a_revision_looks_once_a_minute_whether_another_is_proven(serve: Serve) -> None:
    """The relay is the Service: its address stays, where it leads does not."""
    clock = Clock()
    other, itself = serve(proven_app()), serve(make_app(config("digits-canary-1"), NumpyClassifier()))
    relay = Relay(("127.0.0.1", 0))
    relay.listen()
    app = canary_app(f"http://127.0.0.1:{relay.address[1]}", clock=clock)
    async with running(app) as client, counts_at(other) as of_other, counts_at(itself) as of_itself:
        counts = counts_in(client)

        async def lead_to(url: str) -> None:
            relay.point_to([("127.0.0.1", urlsplit(url).port or 0)])

        async def ask(times: int) -> None:
            for _ in range(times):
                clock.now += 0.001
                assert (await client.infer([ROW])).status == 200

        await lead_to(other)
        await ask(1)
        assert await counts.until_compared(1) == {"same": 1}
        await lead_to(itself)
        await ask(1)
        async with asyncio.timeout(SECONDS):
            while await of_itself.mirrored() < 1 or app._comparison._next_at < clock.now + 1:  # type: ignore[union-attr]
                await asyncio.sleep(0.005)
        await ask(5)
        await lead_to(other)
        clock.now += 60.0
        await ask(1)
        assert await counts.until_compared(2) == {"same": 2}
        assert [await of_other.mirrored(), await of_itself.mirrored()] == [2, 1]
    relay.close()


async def test_no_more_are_compared_than_may_be_in_a_second(serve: Serve) -> None:
    clock = Clock()
    app = make_app(config("digits-canary-1", serve(proven_app()), most_per_second=10.0), NumpyClassifier(), clock=clock)
    async with running(app) as client:
        for tenth in range(1, 4):
            for _ in range(5):
                await client.infer([ROW])
            assert await counts_in(client).until_compared(tenth) == {"same": tenth}
            clock.now += 0.1001


async def test_who_cannot_be_asked_is_left_alone_for_a_second_and_told_of_once(serve: Serve) -> None:
    clock, lines = Clock(), list[str]()
    relay = Relay(("127.0.0.1", 0))
    relay.listen()
    app = canary_app(f"http://127.0.0.1:{relay.address[1]}", clock=clock, log=lines.append)
    async with running(app) as client:
        counts = counts_in(client)
        for failed in range(1, 4):
            for _ in range(5):
                clock.now += 0.001
                assert (await client.infer([ROW])).status == 200
                assert await counts.until_compared(failed) == {"failed": failed}
            clock.now += 1.0
        assert len(lines) == 1
        assert lines[0].startswith(f"comparing with the proven revision fails: http://127.0.0.1:{relay.address[1]}/v2/")
        relay.point_to([("127.0.0.1", urlsplit(serve(proven_app())).port or 0)])
        await client.infer([ROW])
        assert await counts.until_compared(4) == {"failed": 3, "same": 1}
    relay.close()


ODD: dict[str, tuple[int, bytes]] = {
    "a refusal": (429, b'{"error": "more than 1 requests in 1 s; try again in 1 s"}'),
    "no JSON": (200, b"<html>"),
    "no outputs": (200, b'{"outputs": []}'),
    "no labels": (200, b'{"outputs": [{"name": "label", "data": []}]}'),
    "labels that are words": (200, b'{"outputs": [{"name": "label", "data": ["seven"]}]}'),
    "another place": (307, b""),
}


@pytest.mark.parametrize("what", ODD)
async def test_an_answer_without_a_class_is_no_comparison(serve: Serve, what: str) -> None:
    status, body = ODD[what]
    asked: list[str] = []

    async def odd(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            asked.append(scope["path"])
            headers = [(b"content-length", b"%d" % len(body)), (b"location", b"/elsewhere")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        else:
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})

    async with running(canary_app(serve(odd), log=lambda line: None)) as client:
        assert (await client.infer([ROW])).status == 200
        assert await counts_in(client).until_compared(1) == {"failed": 1}
    assert asked == ["/v2/models/digits/infer"]


def test_a_language_model_has_no_classes_to_compare() -> None:
    with pytest.raises(ConfigError, match="compare: compares predicted classes"):
        make_app(config("digits-1", "http://x:1", protocols=["OpenAI"]), NumpyDecoder())


async def test_where_nothing_is_compared_nothing_of_it_is_there() -> None:
    assert proven_app()._comparison is None
    assert decoder_app()._comparison is None
