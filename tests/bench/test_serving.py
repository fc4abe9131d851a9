"""Workload serving against real servers: readiness, keys, and what is kept."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from capstan_runtime.bench.load.target import read_target, scenario_bytes
from capstan_runtime.bench.trial import run_trial
from capstan_runtime.bench.workloads.serving import run, wait_ready
from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.contract import env
from capstan_runtime.contract.benchmark import BenchTask, TrialEnd, TrialResult, TrialTask, TrialWork
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.contract.workloads import Load
from capstan_runtime.errors import ConfigError
from tests.support.control_planes import free_port
from tests.support.load_server import load_server

ASK = {"name": "ask", "path": "/ok", "body": {"question": 1}, "headers": {"X-Api-Key": "$(KEY)"}}
LOOK = {"name": "look", "path": "/chunked", "method": "GET", "weight": 3}


def load_of(*scenario: dict[str, Any], **fields: Any) -> Load:
    given = {"rates": [40.0, 80.0], "seconds": 0.4, "warmupSeconds": 0.1, "scenario": list(scenario)}
    return Load.parse(given | fields)


def task_of(load: Load, url: str) -> TrialTask:
    return TrialTask(trial="t03", seed=5, work=TrialWork(serving=load), url=url, deadline_seconds=60)


def run_in_pod(load: Load, url: str, folder: Path, **environ: str) -> tuple[int, TrialEnd]:
    task = BenchTask(benchmark="b", namespace="n", uid="u", seed=0, trial=task_of(load, url))
    last_words = folder / "termination"
    code = run_trial(task, {env.STORE: str(folder), env.TERMINATION_LOG: str(last_words), **environ})
    return code, TrialEnd.model_validate_json(last_words.read_text())


def test_a_trial_keeps_its_points_and_locusts_files_and_not_the_key(tmp_path: Path) -> None:
    with load_server() as server:
        code, end = run_in_pod(load_of(ASK, LOOK), server.url, tmp_path, KEY="secret-1234\n")
    assert (code, end.is_ok) == (ExitCode.OK, True), end.message
    kept = {path.name: path.read_text() for path in (tmp_path / "b" / "u" / "trials").iterdir()}
    assert sorted(kept) == ["t03.1.json", "t03.1.locust_40_stats.csv", "t03.1.locust_80_stats.csv"]
    assert not any("secret-1234" in text for text in kept.values())
    result = TrialResult.model_validate_json(kept["t03.1.json"])
    assert {point.labels["rate"] for point in result.points} == {"40", "80"}
    assert {point.labels.get("request") for point in result.points} == {None, "ask", "look"}
    assert all(point.value == 0.0 for point in result.points if point.metric == "error_ratio")


def test_requests_are_sent_as_the_scenario_says_with_keys_from_the_environment() -> None:
    literal = {**LOOK, "headers": {"x-text": "$$(KEY) costs 5$"}}
    with load_server() as server:
        run(task_of(load_of(ASK, literal), server.url), open_store("/tmp", {}), {"KEY": "secret"})  # type: ignore[arg-type]
    host = server.url.removeprefix("http://")
    common = f"host: {host}\r\nuser-agent: capstan-bench\r\naccept: */*\r\n"
    assert {request.decode() for request in server.asked} == {
        f"POST /ok HTTP/1.1\r\n{common}content-type: application/json\r\nx-api-key: secret\r\ncontent-length: 14"
        '\r\n\r\n{"question":1}',
        f"GET /chunked HTTP/1.1\r\n{common}x-text: $(KEY) costs 5$\r\n\r\n",
    }


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (ASK, "headers.X-Api-Key: $(KEY) is not set in the pod; set it on container bench by pods.podPatch"),
        ({**LOOK, "headers": {"a b": "c"}}, "headers.a b: a name is letters"),
        ({**LOOK, "headers": {"x": "a\r\nb: c"}}, "headers.x: a name is letters"),
        ({**LOOK, "headers": {"Content-Length": "3"}}, "headers.Content-Length: is set by what sends"),
        ({**LOOK, "path": "/a b"}, "path: /a b must be percent-encoded"),
        ({**LOOK, "path": "/$(SERVICE)"}, "path: $(SERVICE) is not known: only SERVICE is, with"),
        ({**ASK, "body": {"a": ["$(KEY)"]}}, "body: $(KEY) is not known: only SERVICE is, with"),
    ],
)
def test_a_request_that_cannot_be_sent_is_refused_with_the_fix(request_: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=r"workload\.serving\.scenario") as refused:
        run(task_of(load_of(request_), "http://127.0.0.1:1"), open_store("/tmp", {}), {})  # type: ignore[arg-type]
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    "url", ["http://", "ftp://host", "http://user:key@host", "http://host:port", "http://host/a?key=1", "http://host#b"]
)
def test_a_url_that_names_no_server_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"workload\.serving\.url"):
        read_target(url)


def test_the_name_of_a_service_that_was_made_goes_into_path_and_body() -> None:
    request = {"name": "ask", "path": "/v1/$(SERVICE):predict?a=$$(SERVICE)", "body": {"model": ["$(SERVICE)", 1]}}
    target = read_target("http://host/base/")
    (sent,) = scenario_bytes(load_of(request).scenario, target, {"SERVICE": "another"}, "made-t00")
    head, _, body = sent.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /base/v1/made-t00:predict?a=$(SERVICE) HTTP/1.1\r\nhost: host\r\n")
    assert body == b'{"model":["made-t00",1]}'


def wait_for(load: Load, url: str, seconds: float) -> None:
    target = read_target(url)
    asyncio.run(wait_ready(load, target, scenario_bytes(load.scenario, target, {}), seconds))


def test_a_service_that_is_not_there_is_worth_another_try_and_one_that_refuses_is_not() -> None:
    known, unknown = {"name": "known", "path": "/ok"}, {"name": "unknown", "path": "/unauthorized"}
    with pytest.raises(RuntimeError, match=r"not ready after 0.1 s: POST /ok at 127.0.0.1:\d+: no connection"):
        wait_for(load_of(known), f"http://127.0.0.1:{free_port()}", 0.1)
    with load_server() as server:
        with pytest.raises(ConfigError, match=r"scenario\[unknown\]: POST /unauthorized at .*: status 401; correct"):
            wait_for(load_of(known, unknown), server.url, 0.1)
        with pytest.raises(ConfigError, match=r"scenario\[moved\]: POST /moved at .*: status 302; correct its path"):
            wait_for(load_of(known, {"name": "moved", "path": "/moved"}), server.url, 0.1)
        wait_for(load_of(known, {"name": "limited", "path": "/limited"}), server.url, 5.0)
