"""TLS at a pod's door: who is answered, how certificates are renewed, and what clients cannot do to it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from capstan_runtime.errors import ConfigError
from capstan_runtime.serve_replica import line, tls
from capstan_runtime.serve_replica.front import Front, open_door
from tests.serve_replica.pods import INFER, LIVE, READY, WITH_TLS, RunningPod, config_of, request_body
from tests.serve_replica.servers import BODY, SECONDS, ask, serve
from tests.serving.models import NumpyClassifier
from tests.support.certificates import Authority, Kind, MountedSecret, Pair, pem_of_key, serial_of

NAME = "digits.default.svc"
AUTHORITY = Authority()


def issue(kind: Kind = "ec") -> Pair:
    return AUTHORITY.issue("127.0.0.1", names=(NAME,), kind=kind)


class Site:
    """A server, its Secret, and a clock that stands still."""

    def __init__(self, folder: Path) -> None:
        self.pair = issue()
        self.secret = MountedSecret(folder / "secret", self.pair.files)
        self.log: list[str] = []
        self._now = 1000.0
        context = tls.follow_certificate(self.secret.folder, "digits-tls", self.log.append, lambda: self._now)
        self.port, self.pod = serve(NumpyClassifier(), drain_seconds=0.0, tls=context)

    def swap(self, files: dict[str, bytes]) -> None:
        """As the kubelet does it, a second before the next look."""
        self.secret.swap(files)
        self._now += 1.0

    def connect(self, client: ssl.SSLContext | None = None, name: str = NAME) -> ssl.SSLSocket:
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)
        return (client or AUTHORITY.client()).wrap_socket(raw, server_hostname=name)

    def serial(self, client: ssl.SSLContext | None = None, name: str = NAME) -> int:
        """Of the certificate that a new connection gets."""
        with self.connect(client, name) as connection:
            return serial_of(connection)

    def client(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=SECONDS, context=AUTHORITY.client())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def of_version(version: ssl.TLSVersion) -> ssl.SSLContext:
    """A client that would take any cipher of this version, and no other version."""
    client = AUTHORITY.client()
    client.set_ciphers("ALL:@SECLEVEL=0")
    client.minimum_version = client.maximum_version = version
    return client


def test_a_client_that_knows_the_authority_is_answered_over_one_connection(site: Site) -> None:
    client = site.client()
    assert [ask(client, READY), ask(client, INFER, BODY)] == [(200, False)] * 2


def test_a_client_that_trusts_others_is_not_fooled(site: Site) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        site.connect(Authority().client())


@pytest.mark.parametrize(
    ("version", "spoken"), [(ssl.TLSVersion.TLSv1_3, "TLSv1.3"), (ssl.TLSVersion.TLSv1_2, "TLSv1.2")]
)
def test_new_versions_are_spoken_and_http_1_1_is_agreed_on(site: Site, version: ssl.TLSVersion, spoken: str) -> None:
    client = of_version(version)
    client.set_alpn_protocols(["h2", "http/1.1"])
    with site.connect(client) as connection:
        assert (connection.version(), connection.selected_alpn_protocol()) == (spoken, "http/1.1")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_are_refused(site: Site) -> None:
    with pytest.raises(ssl.SSLError):
        site.connect(of_version(ssl.TLSVersion.TLSv1_1))


def test_new_connections_get_a_renewed_certificate_and_old_ones_go_on(site: Site) -> None:
    kept = site.client()
    assert ask(kept, INFER, BODY) == (200, False)
    first = kept.sock
    renewed = issue()
    site.swap(renewed.files)
    assert [site.serial(), site.serial(name="127.0.0.1")] == [
        renewed.serial
    ] * 2  # a client sends no SNI for an address
    assert ask(kept, INFER, BODY) == (200, False)
    assert kept.sock is first
    assert serial_of(kept.sock) == site.pair.serial
    assert site.log == []


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_key_of_another_kind_replaces_the_old_one_for_all_clients(site: Site, version: ssl.TLSVersion) -> None:
    for kind in ("rsa", "ec"):
        renewed = issue(kind)  # type: ignore[arg-type]
        site.swap(renewed.files)
        assert site.serial(of_version(version)) == renewed.serial


def test_a_client_that_resumes_its_session_is_answered_after_a_renewal(site: Site) -> None:
    client = of_version(ssl.TLSVersion.TLSv1_2)
    with site.connect(client) as connection:
        session = connection.session
    site.swap(issue().files)
    raw = socket.create_connection(("127.0.0.1", site.port), timeout=SECONDS)
    with client.wrap_socket(raw, server_hostname=NAME, session=session) as connection:
        connection.sendall(f"GET {READY} HTTP/1.1\r\nhost: {NAME}\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 200"


def test_a_renewal_that_does_not_match_keeps_the_old_certificate_and_is_told_once(site: Site) -> None:
    other = issue()
    site.swap({"tls.crt": other.certificate, "tls.key": issue().key})
    assert [site.serial() for _ in range(3)] == [site.pair.serial] * 3
    site.swap({"tls.crt": other.certificate, "tls.key": issue().key})
    assert site.serial() == site.pair.serial
    mended = issue()
    site.swap(mended.files)
    assert site.serial() == mended.serial
    assert site.log == [
        "TLS: Secret digits-tls: tls.key does not belong to tls.crt; new connections get the certificate from before"
    ]


PAIR = issue()
BROKEN: dict[str, tuple[dict[str, bytes], str]] = {
    "no certificate": ({"tls.key": PAIR.key}, "tls.crt: No such file or directory"),
    "no key": ({"tls.crt": PAIR.certificate}, "tls.key: No such file or directory"),
    "an empty certificate": ({**PAIR.files, "tls.crt": b""}, "tls.crt is no certificate in PEM"),
    "a key for a certificate": ({**PAIR.files, "tls.crt": PAIR.key}, "tls.crt is no certificate in PEM"),
    "an empty key": ({**PAIR.files, "tls.key": b""}, "tls.key is no private key in PEM, or has a passphrase"),
    "a key with a passphrase": (
        {**PAIR.files, "tls.key": pem_of_key(ec.generate_private_key(ec.SECP256R1()), b"secret")},
        "tls.key is no private key in PEM, or has a passphrase",
    ),
    "the key of another": ({**PAIR.files, "tls.key": issue().key}, "tls.key does not belong to tls.crt"),
    "a key of another kind": ({**PAIR.files, "tls.key": issue("rsa").key}, "tls.key does not belong to tls.crt"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_pair_that_is_of_no_use_is_refused_with_the_entry_at_fault(tmp_path: Path, what: str) -> None:
    files, fault = BROKEN[what]
    secret = MountedSecret(tmp_path / "secret", files)
    with pytest.raises(ConfigError) as refused:
        tls.follow_certificate(secret.folder, "digits-tls", print)
    assert str(refused.value) == (
        f"tls.secretRef: Secret digits-tls: {fault}; a Secret of type kubernetes.io/tls holds both as PEM"
    )


def half_a_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        AUTHORITY.client().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=NAME).do_handshake()
    hello = outgoing.read()
    return hello[: len(hello) // 2]


def test_a_handshake_that_does_not_come_ends_and_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_SECONDS", 3.0)
    site = Site(tmp_path)
    silent = [socket.create_connection(("127.0.0.1", site.port), timeout=SECONDS / 2) for _ in range(100)]
    for connection in silent[1::2]:
        connection.sendall(half_a_hello())
    assert ask(site.client(), READY) == (200, False)
    began = time.monotonic()
    assert [rest_of(connection) for connection in silent] == [b""] * 100
    assert time.monotonic() - began < SECONDS / 2  # the loop's own bound is 60 s


async def test_the_pods_own_answers_wait_for_no_handshake_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_SECONDS", 3.0)
    context = tls.follow_certificate(MountedSecret(tmp_path / "secret", PAIR.files).folder, "digits-tls", print)
    with open_door("127.0.0.1", 0) as door:
        front = Front(door, lambda: True, context)
        await front.stand_in()
        silent, _ = await asyncio.open_connection(*door.getsockname())
        assert await asyncio.wait_for(silent.read(), SECONDS / 2) == b""
        front.step_aside()


def rest_of(connection: socket.socket) -> bytes:
    """What is received until the end, however it ends."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


def test_whoever_speaks_no_tls_is_turned_away_without_a_word_in_the_log(
    site: Site, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.WARNING)
    for said in (f"GET {READY} HTTP/1.1\r\nhost: x\r\n\r\n".encode(), b"\x00" * 100, b"\x16\x03\x01\x00\x05hello", b""):
        with socket.create_connection(("127.0.0.1", site.port), timeout=SECONDS) as connection:
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            assert b"HTTP" not in rest_of(connection)
    with contextlib.suppress(ssl.SSLError), site.connect(Authority().client()):
        pass
    assert ask(site.client(), READY) == (200, False)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_an_idle_client_that_does_not_take_its_leave_holds_up_no_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "GOODBYE_SECONDS", 0.5)
    monkeypatch.setattr(tls, "HANDSHAKE_SECONDS", 3.0)
    site = Site(tmp_path)
    idle = site.client()
    assert ask(idle, INFER, BODY) == (200, False)
    unfinished = socket.create_connection(("127.0.0.1", site.port), timeout=SECONDS)
    began = time.monotonic()
    line.say(site.pod, line.Kind.DRAIN)
    word = line.hear(site.pod)
    assert word is not None
    assert word.kind is line.Kind.DRAINED
    assert time.monotonic() - began < 20.0  # the loop's own bound is 30 s
    assert rest_of(unfinished) == b""


StartPod = Callable[..., RunningPod]


@pytest.fixture
def start_pod(tmp_path: Path) -> Iterator[StartPod]:
    pods: list[RunningPod] = []

    def start(script: list[list[str]]) -> RunningPod:
        command = (sys.executable, "-m", "tests.serve_replica.scripted_pod", json.dumps(script))
        config = config_of("blake3:00", **WITH_TLS)
        pods.append(RunningPod(tmp_path / f"pod-{len(pods)}", tmp_path, config, command, AUTHORITY))
        return pods[-1]

    yield start
    for pod in pods:
        pod.kill()


def test_before_and_between_replicas_the_pod_answers_for_itself_over_tls(start_pod: StartPod) -> None:
    pod = start_pod([["warm", "die"], ["hold"]])
    pod.until(lambda: "died; Ray Serve starts another" in pod.said())
    live = pod.until(lambda: pod.ask(LIVE))
    others = [pod.ask(READY), pod.ask(INFER, request_body(1000))]
    assert (live.status, live.body) == (200, b'{"live": true}')
    assert [other and (other.status, other.headers["connection"]) for other in others] == [(503, "close")] * 2


def test_the_pods_own_answers_follow_a_renewal_and_whoever_speaks_no_tls_makes_no_noise(start_pod: StartPod) -> None:
    pod = start_pod([["hold"]])
    pod.until(lambda: pod.ask(LIVE))
    pod.until(lambda: "the script is over" in pod.said())
    before = pod.said()
    renewed = AUTHORITY.issue(pod.address)
    pod.secret.swap(renewed.files)

    def serial() -> int:
        raw = socket.create_connection((pod.address, 8480), timeout=SECONDS)
        with AUTHORITY.client().wrap_socket(raw, server_hostname=pod.address) as connection:
            return serial_of(connection)

    pod.until(lambda: serial() == renewed.serial)
    with socket.create_connection((pod.address, 8480), timeout=SECONDS) as connection:
        connection.sendall(f"GET {READY} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert b"HTTP" not in rest_of(connection)
    assert pod.ask(LIVE) is not None
    assert pod.said() == before


def test_a_pod_without_a_certificate_ends_at_once_with_the_entry_that_is_missing(start_pod: StartPod) -> None:
    pod = start_pod([["hold"]])
    pod.kill()
    pod.secret.swap({"tls.crt": PAIR.certificate})
    code, message = pod.again()
    assert code == 78
    assert message == (
        "tls.secretRef: Secret digits-tls: tls.key: No such file or directory; "
        "a Secret of type kubernetes.io/tls holds both as PEM"
    )
    assert message in pod.said()
