"""Each guard in the path of real requests, and in which order they stand."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from capstan_runtime.contract.serving import (
    Anomaly,
    Audit,
    Auth,
    Batching,
    Cache,
    CircuitBreaker,
    Guards,
    LocalObjectReference,
    Queue,
    RateLimit,
)
from capstan_runtime.errors import ConfigError
from capstan_runtime.serving.audit import first_break
from capstan_runtime.serving.tensors import digest_of
from tests.serving.asgi import Client, classifier_app, metric, running
from tests.serving.models import ROOT, NumpyClassifier

ROW = [0.0, 1.0, 2.0, 3.0]
AUTH = Auth(api_keys_secret_ref=LocalObjectReference(name="keys"))


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def metrics_of(client: Client) -> bytes:
    return (await client.request("GET", "/metrics")).body


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Basic alice-key"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"x-api-key": "alice-keyx"}, 401),
        ({"x-api-key": "\xe9"}, 401),
        ({"authorization": "Bearer alice-key"}, 200),
        ({"authorization": "bearer  alice-key "}, 200),
        ({"x-api-key": "alice-key"}, 200),
    ],
)
async def test_only_a_known_key_is_let_in(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    (tmp_path / "alice").write_text("alice-key\n")
    (tmp_path / "empty").write_text("\n")
    async with running(classifier_app(Guards(auth=AUTH), api_keys=tmp_path)) as client:
        response = await client.infer([ROW], headers)
        assert response.status == status
        assert response.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
        assert (await client.request("GET", "/v2/models/digits", headers=headers)).status == status
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/digits/ready", "/metrics"):
            assert (await client.request("GET", path)).status == 200


async def test_keys_follow_the_mounted_secret_without_a_restart(tmp_path: Path) -> None:
    """As a kubelet swaps them: files are links through `..data`, which is replaced at once."""
    clock = Clock()
    old, new = tmp_path / "..old", tmp_path / "..new"
    for folder, key in ((old, "first"), (new, "other")):
        folder.mkdir()
        (folder / "alice").write_text(key)
    data = tmp_path / "..data"
    data.symlink_to(old.name)
    (tmp_path / "alice").symlink_to("..data/alice")

    async def statuses(client: Client) -> list[int]:
        clock.now += 1.0
        return [(await client.infer([ROW], {"x-api-key": key})).status for key in ("first", "other")]

    warnings: list[str] = []
    app = classifier_app(Guards(auth=AUTH), api_keys=tmp_path, clock=clock, log=warnings.append)
    async with running(app) as client:
        assert await statuses(client) == [200, 401]
        swapped = tmp_path / "..swap"
        swapped.symlink_to(new.name)
        swapped.rename(data)
        assert await statuses(client) == [401, 200]
        hide(tmp_path)
        assert await statuses(client) == [401, 200]
        assert warnings
        show(tmp_path)
        (new / "alice").unlink()
        assert await statuses(client) == [401, 401]


def hide(folder: Path) -> None:
    folder.rename(folder.with_name("away"))


def show(folder: Path) -> None:
    folder.with_name("away").rename(folder)


@pytest.mark.parametrize(("guards", "has_folder"), [(Guards(auth=AUTH), False), (Guards(), True)])
def test_keys_and_their_folder_belong_together(tmp_path: Path, guards: Guards, has_folder: bool) -> None:
    with pytest.raises(ConfigError, match=r"guards\.auth"):
        classifier_app(guards, api_keys=tmp_path if has_folder else None)


def test_a_folder_of_keys_that_is_not_there_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory; mount the Secret"):
        classifier_app(Guards(auth=AUTH), api_keys=tmp_path / "none")


async def test_each_client_has_its_own_rate_by_key_or_by_address(tmp_path: Path) -> None:
    clock = Clock()
    for name in ("alice", "bob"):
        (tmp_path / name).write_text(name)
    limit = RateLimit(requests=2, seconds=10, burst=3)
    app = classifier_app(Guards(auth=AUTH, rate_limit=limit), api_keys=tmp_path, clock=clock)
    async with running(app) as client:

        async def statuses(name: str, times: int) -> list[int]:
            return [(await client.infer([ROW], {"x-api-key": name})).status for _ in range(times)]

        assert await statuses("alice", 5) == [200, 200, 200, 429, 429]
        assert await statuses("bob", 1) == [200]
        refused = await client.infer([ROW], {"x-api-key": "alice"})
        assert (refused.headers["retry-after"], refused.error) == (
            "5",
            "more than 2 requests in 10 s; try again in 5 s",
        )
        clock.now += 5.0
        assert await statuses("alice", 2) == [200, 429]
        assert metric(await metrics_of(client), 'capstan_serving_shed_total{reason="rate_limit"}') == 4
    app = classifier_app(Guards(rate_limit=RateLimit(requests=1)), clock=clock)
    async with running(app) as client:
        assert [(await Client(app, address).infer([ROW])).status for address in ("a", "a", "b")] == [200, 429, 200]


async def test_requests_beyond_the_queue_are_told_when_to_come_back() -> None:
    model = NumpyClassifier()
    guards = Guards(queue=Queue(max_ongoing_requests=2, max_queued_requests=3), batching=None)
    async with running(classifier_app(guards, model)) as client:
        model.on_call = lambda inputs: time.sleep(0.02)
        responses = await asyncio.gather(*(client.infer([ROW]) for _ in range(9)))
        assert sorted(response.status for response in responses) == [200] * 5 + [429] * 4
        refused = next(response for response in responses if response.status == 429)
        assert refused.error == "the replica's queue is full; try again in 1 s"
        rendered = await metrics_of(client)
        assert metric(rendered, 'capstan_serving_shed_total{reason="queue"}') == 4
        assert metric(rendered, "capstan_serving_queue_depth") == 0
        assert (await client.infer([ROW])).status == 200


async def test_requests_that_are_worked_on_or_wait_are_told() -> None:
    model, may_go_on = NumpyClassifier(), threading.Event()
    guards = Guards(queue=Queue(max_ongoing_requests=2, max_queued_requests=3), batching=None)
    async with running(classifier_app(guards, model)) as client:

        async def told() -> tuple[float, float]:
            rendered = await metrics_of(client)
            return (
                metric(rendered, "capstan_serving_ongoing_requests"),
                metric(rendered, "capstan_serving_queue_depth"),
            )

        assert await told() == (0, 0)
        model.on_call = lambda inputs: may_go_on.wait(60)
        requests = [asyncio.create_task(client.infer([ROW])) for _ in range(5)]
        try:
            async with asyncio.timeout(60):
                while await told() != (5, 3):
                    await asyncio.sleep(0.01)
        finally:
            may_go_on.set()
        assert {response.status for response in await asyncio.gather(*requests)} == {200}
        assert await told() == (0, 0)


async def test_same_requests_are_computed_once_and_kept() -> None:
    model = NumpyClassifier()
    async with running(classifier_app(Guards(cache=Cache()), model)) as client:
        model.on_call = lambda inputs: time.sleep(0.02)
        calls = len(model.batches)
        together = await asyncio.gather(*(client.infer([ROW]) for _ in range(5)))
        assert model.batches[calls:] == [1]
        assert sorted(response.headers["x-cached"] for response in together) == ["false"] + ["true"] * 4
        v1 = await client.request("POST", "/v1/models/digits:predict", orjson.dumps({"instances": [ROW]}))
        assert (v1.headers["x-cached"], model.batches[calls:]) == ("true", [1])
        assert v1.json["parameters"]["cached"] is True
        assert v1.json["predictions"][0]["label"] == together[0].json["outputs"][0]["data"][0]
        assert (await client.infer([[0.0, 1.0, 2.0, 3.5]])).headers["x-cached"] == "false"
        rendered = await metrics_of(client)
        assert metric(rendered, 'capstan_serving_cache_lookups_total{result="hit"}') == 5
        assert metric(rendered, 'capstan_serving_cache_lookups_total{result="miss"}') == 2


async def test_the_first_who_asks_may_leave_without_taking_the_answer_along() -> None:
    model = NumpyClassifier()
    app = classifier_app(Guards(cache=Cache()), model)
    async with running(app) as client:
        model.on_call = lambda inputs: time.sleep(0.3)
        leaver = Client(app)
        leaver.gone.set()
        left, stayed = await asyncio.gather(leaver.infer([ROW]), client.infer([ROW]))
        assert (left.status, stayed.status) == (0, 200)


async def test_failures_are_not_kept() -> None:
    model = NumpyClassifier()
    async with running(classifier_app(Guards(cache=Cache()), model, log=lambda line: None)) as client:
        model.on_call = lambda inputs: 1 / 0  # type: ignore[assignment]
        assert (await client.infer([ROW])).status == 500
        model.on_call = lambda inputs: None
        assert (await client.infer([ROW])).status == 200


async def test_a_model_that_fails_is_left_alone_and_tried_again_by_one_request() -> None:
    clock = Clock()
    model = NumpyClassifier()
    lines: list[str] = []
    guards = Guards(circuit_breaker=CircuitBreaker(failures=2, open_seconds=10), batching=None)
    async with running(classifier_app(guards, model, clock=clock, log=lines.append)) as client:

        async def statuses(times: int) -> list[int]:
            return sorted([r.status for r in await asyncio.gather(*(client.infer([ROW]) for _ in range(times)))])

        def fail(inputs: Any) -> None:
            raise RuntimeError("no device")

        model.on_call = fail
        assert (await client.infer([ROW])).status == 500
        assert (await client.infer([ROW])).status == 500
        calls = len(model.batches)
        refused = await client.infer([ROW])
        assert (refused.status, refused.headers["retry-after"], len(model.batches)) == (503, "10", calls)
        assert metric(await metrics_of(client), "capstan_serving_circuit_state") == 2
        clock.now += 10
        assert await statuses(4) == [500, 503, 503, 503]
        clock.now += 10
        model.on_call = lambda inputs: None
        assert await statuses(4) == [200, 503, 503, 503]
        assert await statuses(4) == [200] * 4
        assert metric(await metrics_of(client), "capstan_serving_circuit_state") == 0
        assert metric(await metrics_of(client), 'capstan_serving_shed_total{reason="circuit_breaker"}') == 7
        assert lines == ["the model fails: RuntimeError: no device"] * 3


async def test_one_bad_sample_fails_its_own_request_only() -> None:
    model = NumpyClassifier()
    lines: list[str] = []
    guards = Guards(batching=Batching(wait_milliseconds=20), circuit_breaker=CircuitBreaker(failures=1))

    def fail_on_nines(inputs: Any) -> None:
        if (inputs == 9.0).any():
            raise ValueError("nines")

    async with running(classifier_app(guards, model, log=lines.append)) as client:
        model.on_call = fail_on_nines
        good, bad, other = await asyncio.gather(
            client.infer([ROW]), client.infer([ROW, [9.0] * 4]), client.infer([[1.0] * 4])
        )
        assert [good.status, bad.status, other.status] == [200, 422, 200]
        assert bad.error == "the model has no answer for this input (ValueError), but for others"
        assert good.json["outputs"][0]["data"] == [int(model.expected(np.array([ROW], np.float32)).argmax())]
        assert lines == ["an input makes the model fail: ValueError: nines"]
        assert (await client.infer([[9.0] * 4])).status == 422
        assert (await client.infer([ROW])).status == 200


async def test_an_answer_that_is_not_finite_is_no_answer() -> None:
    model = NumpyClassifier()
    app = classifier_app(model=model, log=lambda line: None)
    async with running(app) as client:
        huge = await client.infer([[3e38] * 4])
        assert (huge.status, "NotFinite" in huge.error) == (422, True)
        model.expected = lambda inputs: np.full((len(inputs), 3), np.nan, np.float32)  # type: ignore[method-assign]
        assert (await client.infer([ROW])).status == 500


async def test_a_request_that_is_unlike_the_training_is_rejected_where_asked_for() -> None:
    guards = Guards(anomaly=Anomaly(action="Reject", confidence_below=0.99))
    async with running(classifier_app(guards)) as client:
        refused = await client.infer([[9.0] * 4, [0.0] * 4])
        assert refused.status == 422
        assert refused.error.startswith("sample 1 is unlike what the model was trained on (confidence 0.3333")
        assert metric(await metrics_of(client), "capstan_serving_anomalous_samples_total") == 1


async def test_every_request_leaves_a_line_that_holds_the_hash_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "alice").write_text("key")
    written: list[bytes] = []
    guards = Guards(auth=AUTH, audit=Audit(), cache=Cache())
    async with running(classifier_app(guards, api_keys=tmp_path, audit_sink=written.append)) as client:
        key = {"x-api-key": "key"}
        answer = await client.infer([ROW], {**key, "x-request-id": "one"})
        await client.infer([ROW], {**key, "x-request-id": "two"})
        await client.infer([ROW], {"x-request-id": "three"})
        await client.infer([[1.0]], {**key, "x-request-id": "four"})
    lines = b"".join(written).splitlines()
    assert first_break(lines) is None
    origin, *records = [orjson.loads(line) for line in lines]
    model = {"model": "digits", "version": "digits-00001", "digest": ROOT}
    assert origin == {"previous": "0" * 64, "time": origin["time"], "service": "default/digits", **model}
    assert [(r["request_id"], r["client"], r["status"], r["outcome"], r["cached"]) for r in records] == [
        ("one", "alice", 200, "ok", False),
        ("two", "alice", 200, "ok", True),
        ("three", "192.0.2.1", 401, "unauthorized", False),
        ("four", "alice", 400, "invalid", False),
    ]
    probabilities = np.array(answer.json["outputs"][3]["data"], np.float32).reshape(1, 3)
    assert records[0]["input_sha256"] == digest_of(np.array([ROW], np.float32))
    assert records[0]["output_sha256"] == digest_of(probabilities)
    assert all({"input", "output", "previous"} & set(record) == {"previous"} for record in records)
    assert all(record.items() >= model.items() for record in records)
    assert b"alice-key" not in b"".join(lines)
    assert records[0]["previous"] == hashlib.sha256(lines[0]).hexdigest()


async def test_the_payload_is_recorded_only_where_asked_for() -> None:
    written: list[bytes] = []
    async with running(classifier_app(Guards(audit=Audit(payload=True)), audit_sink=written.append)) as client:
        await client.infer([ROW])
    record = orjson.loads(b"".join(written).splitlines()[1])
    assert record["input"] == [ROW]
    assert sum(record["output"][0]) == pytest.approx(1.0)


async def test_a_broken_audit_never_fails_a_request_and_what_was_lost_is_counted() -> None:
    written: list[bytes] = []
    is_broken = True

    def sink(lines: bytes) -> None:
        if is_broken:
            raise OSError("the disk is full")
        written.append(lines)

    async with running(classifier_app(Guards(audit=Audit(max_buffered=5)), audit_sink=sink)) as client:
        assert [(await client.infer([ROW])).status for _ in range(12)] == [200] * 12
        async with asyncio.timeout(10):
            while metric(await metrics_of(client), "capstan_serving_audit_dropped_total") < 12:
                await asyncio.sleep(0.1)
        is_broken = False
        await client.infer([ROW])
    lines = b"".join(written).splitlines()
    assert first_break(lines) is None
    assert [orjson.loads(line).get("dropped") for line in lines] == [12, None]


async def test_the_cheapest_guard_refuses_first(tmp_path: Path) -> None:
    """One request that every guard would refuse; the guards are satisfied one after the other."""
    (tmp_path / "alice").write_text("key")
    clock = Clock()
    model = NumpyClassifier()
    guards = Guards(
        auth=AUTH,
        rate_limit=RateLimit(requests=1, seconds=100),
        circuit_breaker=CircuitBreaker(failures=1, open_seconds=50),
        cache=Cache(),
    )
    app = classifier_app(guards, model, api_keys=tmp_path, clock=clock, log=lambda line: None)
    key = {"x-api-key": "key"}
    bad_body = b"x" * (5 << 20)
    path = "/v2/models/digits/infer"
    async with running(app) as client:
        await client.infer([ROW], key)
        assert (await client.request("POST", path, bad_body)).status == 401
        assert (await client.request("POST", path, bad_body, key)).status == 429
        clock.now += 100
        assert (await client.request("POST", path, bad_body, key)).status == 413
        clock.now += 100
        model.on_call = lambda inputs: 1 / 0  # type: ignore[assignment]
        assert (await client.infer([[5.0] * 4], key)).status == 500
        model.on_call = lambda inputs: None
        clock.now += 100
        assert (await client.infer([[1.0]], key)).status == 400
        app._doors.breaker.note(has_failed=True)  # type: ignore[union-attr]
        clock.now += 49  # the circuit is open, and the client has no token
        assert (await client.infer([ROW], key)).status == 429


async def test_what_is_kept_is_answered_while_the_circuit_is_open() -> None:
    model = NumpyClassifier()
    guards = Guards(cache=Cache(), circuit_breaker=CircuitBreaker(failures=1))
    async with running(classifier_app(guards, model, log=lambda line: None)) as client:
        await client.infer([ROW])
        model.on_call = lambda inputs: 1 / 0  # type: ignore[assignment]
        assert (await client.infer([[5.0] * 4])).status == 500
        assert (await client.infer([[6.0] * 4])).status == 503
        assert (await client.infer([ROW])).status == 200


async def test_guards_that_are_not_configured_leave_no_code_in_the_path() -> None:
    app = classifier_app(Guards(circuit_breaker=None, batching=None))
    assert app._admissions == ()
    assert (app._audit, app._tracer) == (None, None)
    assert [app._doors.keys, app._doors.rate, app._doors.adaptive, app._doors.breaker] == [None] * 4
    async with running(app) as client:
        rendered = await metrics_of(client)
        assert b"circuit_state" not in rendered
        assert b"capstan_serving_adaptive_limit" not in rendered
        assert b"cache_bytes" not in rendered


async def test_metrics_tell_what_is_served_and_how_it_went() -> None:
    async with running(classifier_app()) as client:
        await client.infer([ROW, ROW, ROW])
        await client.infer([[1.0]])
        text = await metrics_of(client)
        info = f'capstan_serving_model_info{{digest="{ROOT}",model="digits",version="digits-00001"}}'
        assert metric(text, info) == 1
        assert metric(text, 'capstan_serving_requests_total{outcome="ok"}') == 1
        assert metric(text, 'capstan_serving_requests_total{outcome="invalid"}') == 1
        assert metric(text, "capstan_serving_latency_seconds_count") == 1
        assert metric(text, "capstan_serving_confidence_count") == 3
        assert metric(text, "capstan_serving_batch_size_sum") == 3


async def test_a_client_that_goes_away_leaves_the_batch() -> None:
    model = NumpyClassifier()
    app = classifier_app(Guards(batching=Batching(wait_milliseconds=200)), model)
    async with running(app) as client:
        calls = len(model.batches)
        leaver = Client(app)
        leaver.gone.set()
        left, stayed = await asyncio.gather(leaver.infer([ROW] * 5), client.infer([ROW]))
        assert (left.status, stayed.status) == (0, 200)
        assert model.batches[calls:] == [1]
        assert metric(await metrics_of(client), 'capstan_serving_requests_total{outcome="gone"}') == 1


async def test_an_unforeseen_error_is_a_500_with_its_trace_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    app = classifier_app(log=lines.append)
    async with running(app) as client:

        async def broken(inputs: Any, trip: Any) -> Any:
            raise TimeoutError("of something else")

        monkeypatch.setattr(app._service._inference, "_compute", broken)
        response = await client.infer([ROW])
        assert (response.status, response.error) == (500, "the server failed; its log says why")
        assert "of something else" in lines[0]
        assert metric(await metrics_of(client), 'capstan_serving_requests_total{outcome="failed"}') == 1
