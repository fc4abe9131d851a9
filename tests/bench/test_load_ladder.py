"""Open-loop load on real servers: what they do wrong is counted, and stops nothing."""

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capstan_runtime.bench.load.arrivals import plan_arrivals
from capstan_runtime.bench.load.ladder import Rung, climb
from capstan_runtime.bench.load.pool import TIMEOUT
from capstan_runtime.bench.load.target import read_target, scenario_bytes
from capstan_runtime.bench.measured import percentile
from capstan_runtime.contract.workloads import Load
from tests.support.certificates import Authority, pem_of
from tests.support.control_planes import free_port
from tests.support.load_server import ANSWERS, LoadServer, load_server


def load_of(*paths: str, rates: tuple[float, ...] = (100.0,), seconds: float = 0.5, **fields: Any) -> Load:
    scenario = [{"name": path.strip("/"), "path": path, "body": {"x": 1}} for path in paths]
    return Load.model_validate(
        {"rates": rates, "seconds": seconds, "warmup_seconds": 0.1, "scenario": scenario, **fields}
    )


def climb_on(url: str, load: Load, seed: int = 0) -> list[Rung]:
    target = read_target(url)
    return asyncio.run(climb(load, target, scenario_bytes(load.scenario, target, {}), seed))


def failures_by_name(load: Load, rung: Rung) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for kind, reason in rung.failures:
        found.setdefault(load.scenario[kind].name, set()).add(reason)
    return found


def test_a_stall_counts_for_every_request_that_was_due_in_it_and_not_for_those_few_that_met_it() -> None:
    """Coordinated omission. 200 requests per second are due, and from the 100th on the server stalls for 0.5 s. Of the
    four connections each has one request in the stall: a closed loop sees 4 slow answers of 400, and its p99 none."""
    rate, stall, connections = 200.0, 0.5, 4
    load = load_of("/ok", rates=(rate,), seconds=2.0, arrivals="Constant", connections=connections, warmup_seconds=0)
    with load_server(LoadServer(stall_after=100, stall_seconds=stall)) as server:
        (rung,) = climb_on(server.url, load)
    assert (len(rung.latency), len(server.asked), sum(rung.failures.values())) == (400, 400, 0)
    seen_by_a_closed_loop = server.held
    due_in_first_half = int(rate * stall / 2)
    slow = int(np.count_nonzero(rung.latency >= stall / 2))
    assert seen_by_a_closed_loop <= connections
    assert slow >= due_in_first_half
    assert percentile(np.sort(rung.latency), 0.99) >= stall / 2


def test_every_request_of_the_plan_is_sent_once_and_rates_follow_each_other() -> None:
    load = load_of("/ok", "/chunked", rates=(50.0, 400.0), arrivals="Poisson")
    with load_server() as server:
        rungs = climb_on(server.url, load, seed=7)
    planned = [
        plan_arrivals("Poisson", rate, seconds, [1, 1], np.random.default_rng([7, index]))
        for index, (rate, seconds) in enumerate(((50.0, 0.1), (50.0, 0.5), (400.0, 0.5)))
    ]
    assert len(server.asked) == sum(len(plan.due) for plan in planned)
    for rung, plan in zip(rungs, planned[1:], strict=True):
        assert rung.due == pytest.approx(plan.due, abs=1e-6)
        assert rung.kinds.tolist() == plan.kinds.tolist()
        assert np.isfinite(rung.latency).all()
        assert rung.body_bytes == {0: 2 * (plan.kinds == 0).sum(), 1: 5 * (plan.kinds == 1).sum()}


def test_what_servers_do_wrong_is_counted_by_kind_and_the_run_goes_on() -> None:
    load = load_of(*ANSWERS, "/hang", rates=(150.0,), seconds=1.0, timeout_seconds=3.0, connections=200)
    with load_server() as server:
        (rung,) = climb_on(server.url, load)
        rungs_asked = len(server.asked)
    assert failures_by_name(load, rung) == {
        "error": {"status 500"},
        "moved": {"status 302"},
        "unauthorized": {"status 401"},
        "limited": {"status 429"},
        "rubbish": {"bad answer: the first line is no status of HTTP/1"},
        "close": {"closed before it was answered"},
        "cut": {"closed before it was answered"},
        "hang": {TIMEOUT},
    }
    is_bad = [load.scenario[kind].name in failures_by_name(load, rung) for kind in rung.kinds]
    assert np.isinf(rung.latency).tolist() == is_bad
    assert sum(rung.failures.values()) == sum(is_bad)
    assert rungs_asked >= len(rung.latency)


def test_connections_are_never_more_than_allowed_and_requests_that_wait_in_vain_fail() -> None:
    load = load_of("/hang", rates=(100.0,), timeout_seconds=0.3, connections=2, warmup_seconds=0)
    with load_server() as server:
        (rung,) = climb_on(server.url, load)
    assert failures_by_name(load, rung) == {"hang": {TIMEOUT}}
    assert np.isinf(rung.latency).all()
    assert len(server.asked) < len(rung.latency), "most were never sent: both connections were taken"


def test_a_connection_serves_many_requests() -> None:
    load = load_of("/ok", rates=(200.0,), connections=8)
    with load_server() as server:
        climb_on(server.url, load)
    assert server.connections <= 8 < len(server.asked)


def test_nobody_listening_fails_every_request() -> None:
    load = load_of("/ok", rates=(50.0,))
    (rung,) = climb_on(f"http://127.0.0.1:{free_port()}", load)
    reasons = failures_by_name(load, rung)["ok"]
    assert all(reason.startswith("no connection: ConnectionRefusedError") for reason in reasons)
    assert np.isinf(rung.latency).all()


def test_a_server_that_accepts_and_never_reads_cannot_stop_the_run() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        load = load_of("/ok", rates=(50.0,), timeout_seconds=0.3)
        (rung,) = climb_on(f"http://127.0.0.1:{deaf.getsockname()[1]}", load)
    assert failures_by_name(load, rung) == {"ok": {TIMEOUT}}


def test_https_asks_those_alone_whose_certificate_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority()
    pair = authority.issue("127.0.0.1")
    for name, content in pair.files.items():
        (tmp_path / name).write_bytes(content)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    load = load_of("/ok", rates=(50.0,), timeout_seconds=3.0)
    with load_server(tls=tls) as server:
        (stranger,) = climb_on(server.url, load)
        assert len(server.asked) == 0
        assert all("CERTIFICATE_VERIFY_FAILED" in reason for reason in failures_by_name(load, stranger)["ok"])
        (tmp_path / "ca.crt").write_bytes(pem_of(authority.certificate))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.crt"))
        (trusted,) = climb_on(server.url, load)
    assert np.isfinite(trusted.latency).all()
