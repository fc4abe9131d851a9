"""The small client and its informer, against a scripted API server."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import orjson
import pytest
import yaml
from aiohttp import web

from capstan_local.client import PODS, Access, ApiError, Client, Object, Unreachable
from capstan_local.informer import Informer


def pod(name: str, version: int, uid: str | None = None) -> Object:
    return {"metadata": {"namespace": "n", "name": name, "uid": uid or name, "resourceVersion": str(version)}}


class Script:
    """Lists and watches to be answered, one after the other; the last watch stays open."""

    def __init__(self) -> None:
        self.lists: list[Object | int] = []
        self.watches: list[list[Object]] = []
        self.asked: list[dict[str, str]] = []
        self.done = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(dict(request.query))
        if "watch" not in request.query:
            page = self.lists.pop(0)
            if isinstance(page, int):
                return web.json_response({"reason": "Oops", "message": "not now"}, status=page)
            return web.json_response(page)
        response = web.StreamResponse()
        await response.prepare(request)
        if not self.watches:
            self.done.set()
            await asyncio.sleep(60)
        data = b"".join(orjson.dumps(change) + b"\n" for change in self.watches.pop(0))
        for start in range(0, len(data), 100_000):  # no respect for lines
            await response.write(data[start : start + 100_000])
        return response


@pytest.fixture
async def script() -> Script:
    return Script()


@pytest.fixture
async def client(script: Script) -> AsyncIterator[Client]:
    app = web.Application()
    app.router.add_route("*", "/api/v1/pods", script.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with Client(Access(f"http://127.0.0.1:{runner.addresses[0][1]}")) as client:
        yield client
    await runner.cleanup()


def listing(version: int, *pods: Object, more: str = "") -> Object:
    return {"items": list(pods), "metadata": {"resourceVersion": str(version), "continue": more}}


async def changes(client: Client, script: Script) -> list[tuple[str, str, str]]:
    told: list[tuple[str, str, str]] = []

    def note(kind: str, obj: Object, _old: Object | None) -> None:
        told.append((kind, obj["metadata"]["name"], obj["metadata"]["resourceVersion"]))

    informer = Informer(client, PODS, note)
    running = asyncio.create_task(informer.run())
    done = asyncio.create_task(script.done.wait())
    await asyncio.wait({running, done}, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    assert script.done.is_set(), running
    running.cancel()
    return told


async def test_what_vanished_during_an_outage_is_told_as_deleted(client: Client, script: Script) -> None:
    gone = {"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old"}}
    script.lists = [listing(5, pod("a", 1), pod("b", 2)), 500, listing(9, pod("b", 2), pod("c", 8))]
    script.watches = [[{"type": "MODIFIED", "object": pod("a", 6)}, gone]]
    assert await changes(client, script) == [
        ("ADDED", "a", "1"),
        ("ADDED", "b", "2"),
        ("MODIFIED", "a", "6"),
        ("DELETED", "a", "6"),
        ("ADDED", "c", "8"),
    ]
    assert script.asked[-1]["resourceVersion"] == "9"


async def test_a_watch_that_ends_in_good_order_goes_on_where_it_was(client: Client, script: Script) -> None:
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "20"}}}
    script.lists = [listing(5)]
    script.watches = [
        [{"type": "ADDED", "object": pod("a", 7)}, bookmark],
        [{"type": "DELETED", "object": pod("a", 21)}],
    ]
    assert await changes(client, script) == [("ADDED", "a", "7"), ("DELETED", "a", "21")]
    assert [asked.get("resourceVersion") for asked in script.asked] == [None, "5", "20", "21"]


async def test_an_object_of_the_same_name_is_another_object(client: Client, script: Script) -> None:
    script.lists = [listing(5, pod("a", 1, uid="old"))]
    script.watches = [[{"type": "MODIFIED", "object": pod("a", 6, uid="new")}]]
    assert await changes(client, script) == [("ADDED", "a", "1"), ("DELETED", "a", "1"), ("ADDED", "a", "6")]


async def test_lists_are_read_page_by_page_and_lines_may_be_long(client: Client, script: Script) -> None:
    large = pod("large", 6)
    large["data"] = "x" * 1_000_000
    script.lists = [listing(5, pod("a", 1), more="next"), listing(5, pod("b", 2))]
    script.watches = [[{"type": "ADDED", "object": large}]]
    assert [name for _, name, _ in await changes(client, script)] == ["a", "b", "large"]
    assert script.asked[1]["continue"] == "next"


async def test_an_answer_to_a_write_is_neither_lost_nor_brought_back_to_life(client: Client) -> None:
    informer = Informer(client, PODS, lambda *_: None)
    informer.remember(pod("a", 5))
    informer.remember(pod("a", 4))
    assert informer.objects["n", "a"]["metadata"]["resourceVersion"] == "5"
    informer._drop(("n", "a"), pod("a", 6))
    informer.remember(pod("a", 5))
    assert informer.objects == {}


async def test_errors_tell_what_the_server_said_or_that_it_is_not_there(client: Client, script: Script) -> None:
    script.lists = [403]
    with pytest.raises(ApiError, match="403 Oops: not now"):
        await client.list(PODS)
    async with Client(Access("http://127.0.0.1:1")) as nobody:
        with pytest.raises(Unreachable, match=r"GET http://127\.0\.0\.1:1/api/v1/pods"):
            await nobody.list(PODS)


def kubeconfig(folder: Path, change: Callable[[Object], None]) -> Path:
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "http://127.0.0.1:1/"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    change(document)
    path = folder / "config"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_kubeconfig_says_where_and_as_whom(tmp_path: Path) -> None:
    assert Access.from_kubeconfig(kubeconfig(tmp_path, lambda _: None)) == Access("http://127.0.0.1:1", None, "t")
    (tmp_path / "token").write_text("from-file\n")

    def use_file(document: Object) -> None:
        document["users"][0]["user"] = {"tokenFile": "token"}

    assert Access.from_kubeconfig(kubeconfig(tmp_path, use_file)).token == "from-file"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["users"][0]["user"].update(exec={}), r"user\.exec is not supported"),
        (lambda d: d["contexts"][0]["context"].update(user="x"), "users has no entry named 'x'"),
        (lambda d: d.pop("current-context"), "contexts has no entry named None"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_says_why(
    tmp_path: Path, change: Callable[[Object], None], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Access.from_kubeconfig(kubeconfig(tmp_path, change))


def test_an_authority_that_is_no_certificate_is_refused(tmp_path: Path) -> None:
    def use_https(document: Object) -> None:
        document["clusters"][0]["cluster"] = {
            "server": "https://127.0.0.1:1",
            "certificate-authority-data": base64.b64encode(b"no certificate").decode(),
        }

    with pytest.raises(ValueError, match="certificate-authority is no PEM certificate"):
        Access.from_kubeconfig(kubeconfig(tmp_path, use_https))
