"""Who gets in: nobody without a token, and nobody from another machine."""

import socket
import ssl
import urllib.parse

import psutil
import pytest

from tests.apiserver.client import Api, failure
from tests.support.control_planes import ControlPlane


@pytest.mark.parametrize("path", ["/api/v1/namespaces", "/apis/apps/v1/deployments"])
async def test_a_wrong_token_is_401(api: Api, path: str) -> None:
    assert (await api.get(path, token="wrong")).expect(401) == failure(401, "Unauthorized", "Unauthorized")


async def test_without_a_token_nothing_is_read_or_written(api: Api, configmaps: str) -> None:
    for method, path in (("GET", configmaps), ("POST", configmaps), ("GET", "/api/v1/secrets"), ("DELETE", configmaps)):
        async with api.session.request(method, api.url + path, json={"metadata": {"name": "x"}}) as response:
            body = await response.json()
        assert response.status in (401, 403), (method, path, body)
        assert (body["kind"], body["status"], body["code"]) == ("Status", "Failure", response.status)
        assert body["reason"] in ("Unauthorized", "Forbidden")


async def test_plain_http_is_refused(api: Api) -> None:
    address = urllib.parse.urlsplit(api.url)
    with socket.create_connection((address.hostname, address.port), timeout=5) as plain:
        plain.sendall(b"GET /api HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = plain.recv(200)
    assert b"200 OK" not in answer


async def test_the_server_listens_on_loopback_alone(control_plane: ControlPlane) -> None:
    port = urllib.parse.urlsplit(control_plane.url).port
    listening = {
        item.laddr.ip for item in psutil.net_connections("tcp") if item.status == "LISTEN" and item.laddr.port == port
    }
    assert listening == {"127.0.0.1"}


@pytest.mark.parametrize(("name", "is_good"), [("127.0.0.1", True), ("elsewhere.example.com", False)])
async def test_the_certificate_is_for_the_loopback_address(
    control_plane: ControlPlane, name: str, is_good: bool
) -> None:
    context, address = control_plane.ssl_context(), urllib.parse.urlsplit(control_plane.url)
    with socket.create_connection((address.hostname, address.port), timeout=5) as raw:
        try:
            with context.wrap_socket(raw, server_hostname=name) as secure:
                assert secure.version() in ("TLSv1.2", "TLSv1.3")
                assert is_good
        except ssl.SSLCertVerificationError:
            assert not is_good


async def test_the_kubeconfig_is_for_its_owner_alone(control_plane: ControlPlane) -> None:
    assert control_plane.kubeconfig.stat().st_mode & 0o077 == 0


async def test_a_self_review_says_the_admin_may_do_anything(api: Api, namespace: str) -> None:
    review = {"spec": {"resourceAttributes": {"namespace": namespace, "verb": "create", "resource": "pods"}}}
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    answered = (
        await api.post(path, review | {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"})
    ).expect(201)
    assert answered["status"]["allowed"] is True
