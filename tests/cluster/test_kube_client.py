"""The client: typed errors, deadlines, 429 in place, and what is sent."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from capstan_operator.cluster import kube
from capstan_operator.cluster.credentials import Credentials
from capstan_operator.cluster.errors import ApiError, api_error
from capstan_operator.cluster.kinds import CONFIG_MAPS, PODS, SECRETS
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.limiter import Lane, Limiter
from capstan_operator.metrics import Metrics
from tests.support.fake_api import FakeApi

POD = b'{"metadata": {"name": "p", "namespace": "default"}}'


async def refusal(coroutine: object) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await coroutine  # type: ignore[misc]
    return caught.value


async def test_errors_carry_status_reason_and_message(api: FakeApi, client: KubeClient) -> None:
    error = await refusal(client.get(PODS, "default", "nobody"))
    assert (error.status, error.reason, error.is_not_found) == (404, "NotFound", True)
    assert str(error) == "NotFound (404): GET /api/v1/namespaces/default/pods/nobody: nobody not found"


async def test_an_existing_name_and_a_conflict_are_told_apart(api: FakeApi, client: KubeClient) -> None:
    await client.create(PODS, "default", POD, lane=Lane.CREATE)
    taken = await refusal(client.create(PODS, "default", POD, lane=Lane.CREATE))
    other = await refusal(client.delete(PODS, "default", "p", uid="other", grace_seconds=None, lane=Lane.CREATE))
    assert (taken.is_already_exists, taken.is_conflict) == (True, False)
    assert (other.is_already_exists, other.is_conflict) == (False, True)


@pytest.mark.parametrize(
    ("status", "body", "is_refusal"),
    [
        (403, {"reason": "Forbidden", "message": "exceeded quota"}, True),
        (422, {"reason": "Invalid"}, True),
        (403, {"reason": "Forbidden", "details": {"causes": [{"reason": "NamespaceTerminating"}]}}, False),
        (409, {"reason": "AlreadyExists"}, False),
        (500, {}, False),
        (0, {}, False),
    ],
)
def test_only_what_a_person_must_mend_is_a_refusal(status: int, body: dict[str, object], is_refusal: bool) -> None:
    assert api_error(status, json.dumps(body).encode(), "POST /x").is_refusal == is_refusal


def test_an_answer_that_is_no_status_is_quoted() -> None:
    assert (
        str(api_error(502, b"<html>bad gateway</html>", "GET /x")) == "Http502 (502): GET /x: <html>bad gateway</html>"
    )


async def test_a_429_is_waited_out_and_tried_again(api: FakeApi, client: KubeClient, metrics: Metrics) -> None:
    api.fail("create", "pods", times=2, status=429, retry_after=0)
    await client.create(PODS, "default", POD, lane=Lane.CREATE)
    assert [call.status for call in api.calls] == [429, 429, 201]
    labels = {"verb": "POST", "code": "429", "lane": "create"}
    assert metrics.registry.get_sample_value("capstan_operator_api_requests_total", labels) == 2


async def test_a_429_without_end_is_an_error_after_five_tries(api: FakeApi, client: KubeClient) -> None:
    api.fail("create", "pods", times=9, status=429, retry_after=0)
    error = await refusal(client.create(PODS, "default", POD, lane=Lane.CREATE))
    assert (error.status, len(api.calls)) == (429, 5)


async def test_a_500_is_not_repeated_here(api: FakeApi, client: KubeClient) -> None:
    api.fail("create", "pods", status=500)
    error = await refusal(client.create(PODS, "default", POD, lane=Lane.CREATE))
    assert (error.status, len(api.calls)) == (500, 1)


async def test_a_server_that_never_answers_is_given_up(
    api: FakeApi, client: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.fail("get", "pods", hangs=True)
    started = time.monotonic()
    error = await refusal(client.call("GET", PODS.path("default", "p"), lane=Lane.SYSTEM, seconds=0.1))
    assert (error.status, error.reason) == (0, "NoAnswer")
    assert time.monotonic() - started < 5


async def test_a_lost_answer_is_no_answer_though_the_pod_exists(api: FakeApi, client: KubeClient) -> None:
    api.fail("create", "pods", loses_answer=True)
    error = await refusal(client.create(PODS, "default", POD, lane=Lane.CREATE))
    assert (error.status, len(api.of(PODS))) == (0, 1)


async def test_a_closed_port_is_no_answer() -> None:
    async with KubeClient(Credentials("http://127.0.0.1:1"), Limiter(), Metrics()) as client:
        error = await refusal(client.get(PODS, "default", "p"))
    assert (error.status, error.reason) == (0, "NoAnswer")


async def test_a_slot_is_free_again_whatever_happened(api: FakeApi, metrics: Metrics) -> None:
    limiter = Limiter()
    async with KubeClient(Credentials(api.url), limiter, metrics) as client:
        api.fail("create", "pods", status=500)
        await refusal(client.create(PODS, "default", POD, lane=Lane.CREATE))
        api.fail("create", "pods", hangs=True)
        task = asyncio.create_task(client.create(PODS, "default", POD, lane=Lane.CREATE))
        await asyncio.sleep(0.05)
        assert limiter.in_flight == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert limiter.in_flight == 0


async def test_a_new_token_in_the_file_is_used_without_a_restart(api: FakeApi, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("old\n")
    credentials = Credentials(api.url, token_file=token_file)
    assert credentials.current_token() == "old"
    token_file.write_text("new\n")
    credentials.forget_token()
    assert credentials.current_token() == "new"


async def test_an_empty_dry_run_patch_shows_an_object_and_changes_nothing(api: FakeApi, client: KubeClient) -> None:
    before = api.put(SECRETS, {"metadata": {"name": "s", "namespace": "default"}})
    await client.merge_patch(SECRETS, "default", "s", {}, lane=Lane.CREATE, dry_run=True)
    assert api.get(SECRETS, "s") == before
    assert [call.is_write for call in api.calls] == [False]


async def test_a_watch_delivers_what_comes_after_its_version_and_reports_an_expired_one(
    api: FakeApi, client: KubeClient
) -> None:
    start = str(api.version)
    api.put(PODS, {"metadata": {"name": "p", "namespace": "default", "labels": {"a": "b"}}})
    api.put(PODS, {"metadata": {"name": "q", "namespace": "default"}})
    watch = client.watch(PODS, None, selector="a=b", version=start)
    assert b'"name": "p"' in await asyncio.wait_for(anext(watch), 2)
    api.end_watches(PODS)
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(anext(watch), 2)


async def test_a_silent_watch_is_taken_for_dead(
    api: FakeApi, client: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube, "SILENCE_SECONDS", 0.1)
    watch = client.watch(PODS, None, selector="", version=str(api.version))
    error = await refusal(anext(watch))
    assert (error.status, error.reason) == (0, "NoAnswer")


async def test_lines_are_put_together_from_any_chunks() -> None:
    class Chunks:
        async def iter_any(self) -> object:
            for chunk in (b'{"a', b'":1}\n{"b":', b"2}\n\n", b'{"cut'):
                yield chunk

    assert [line async for line in kube._lines(Chunks())] == [b'{"a":1}', b'{"b":2}']  # type: ignore[arg-type]


async def test_a_line_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube, "MAX_LINE_BYTES", 10)

    class Chunks:
        async def iter_any(self) -> object:
            while True:
                yield b"xxxx"

    with pytest.raises(ApiError, match="longer than 10 bytes"):
        [line async for line in kube._lines(Chunks())]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["../../victim/configmaps/kept", "..", ".", "", "a/b", "%2e%2e%2fb"])
async def test_a_name_that_leads_elsewhere_is_asked_for_nowhere(api: FakeApi, client: KubeClient, name: str) -> None:
    api.put(CONFIG_MAPS, {"metadata": {"name": "kept", "namespace": "victim"}, "data": {"result.json": "{}"}})
    with pytest.raises(ValueError, match="is no name"):
        await client.get(CONFIG_MAPS, "attacker", name)
    with pytest.raises(ValueError, match="is no name"):
        await client.get(CONFIG_MAPS, name, "kept")
    assert api.calls == []
