"""Where credentials come from, and what is said when they cannot be used."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path
from typing import Any

import pytest
import yaml

from capstan_operator.cluster import credentials as module
from capstan_operator.cluster.credentials import (
    Credentials,
    CredentialsError,
    load_credentials,
    read_kubeconfig,
    read_service_account,
)


def write(path: Path, user: dict[str, Any] | None = None, cluster: dict[str, Any] | None = None, **top: Any) -> Path:
    config = {
        "current-context": "one",
        "contexts": [
            {"name": "one", "context": {"cluster": "c", "user": "u", "namespace": "mine"}},
            {"name": "two", "context": {"cluster": "gone", "user": "u"}},
        ],
        "clusters": [{"name": "c", "cluster": {"server": "https://10.0.0.1:6443/"} | (cluster or {})}],
        "users": [{"name": "u", "user": user or {"token": "t"}}],
    }
    path.write_text(yaml.safe_dump(config | top))
    return path


def test_a_kubeconfig_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes(b"CA")
    data = base64.b64encode(b"KEY").decode()
    path = write(
        tmp_path / "config",
        {"client-certificate-data": base64.b64encode(b"CERT").decode(), "client-key-data": data},
        {"certificate-authority": "ca.crt"},
    )
    assert read_kubeconfig(path) == Credentials(
        server="https://10.0.0.1:6443", ca_pem=b"CA", certificate_pem=b"CERT", key_pem=b"KEY", namespace="mine"
    )


def test_a_token_file_lies_beside_the_kubeconfig_and_is_read_when_needed(tmp_path: Path) -> None:
    path = write(tmp_path / "config", {"tokenFile": "token"})
    credentials = read_kubeconfig(path)
    (tmp_path / "token").write_text("late\n")
    assert credentials.current_token() == "late"


@pytest.mark.parametrize(
    ("user", "cluster", "top", "problem"),
    [
        ({"exec": {"command": "aws-iam"}}, {}, {}, "logs in with aws-iam, which is not supported"),
        ({"auth-provider": {"name": "gcp"}}, {}, {}, "an auth provider, which is not supported"),
        ({"username": "u", "password": "p"}, {}, {}, "basic authentication is not supported"),
        ({}, {"proxy-url": "http://p"}, {}, "proxy-url is not supported"),
        ({}, {"server": ""}, {}, r"clusters\[c\].server is not set"),
        ({}, {}, {"current-context": ""}, "current-context is not set"),
        ({}, {}, {"current-context": "two"}, "clusters has no entry named 'gone'"),
        ({}, {}, {"current-context": "three"}, "contexts has no entry named 'three'"),
        ({"client-certificate": "missing.crt"}, {}, {}, "client-certificate: .*No such file"),
    ],
)
def test_what_cannot_be_used_is_named(
    tmp_path: Path, user: dict[str, Any], cluster: dict[str, Any], top: dict[str, Any], problem: str
) -> None:
    path = write(tmp_path / "config", user, cluster, **top)
    with pytest.raises(CredentialsError, match=problem) as caught:
        read_kubeconfig(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("document", ["[]", "- a"])
def test_a_list_is_no_kubeconfig(tmp_path: Path, document: str) -> None:
    path = tmp_path / "config"
    path.write_text(document)
    with pytest.raises(CredentialsError) as caught:
        read_kubeconfig(path)
    assert str(caught.value) == f"{path}: holds a list; a kubeconfig is an object"


def test_an_authority_that_is_no_certificate_is_told_by_file_and_field(tmp_path: Path) -> None:
    path = write(tmp_path / "config", {}, {"certificate-authority-data": "AAAA"})
    with pytest.raises(CredentialsError) as caught:
        read_kubeconfig(path).ssl_context()
    assert str(caught.value).startswith(f"{path}: certificate-authority is no PEM certificate: ")


def test_the_pods_own_account_is_used_in_a_cluster(tmp_path: Path) -> None:
    for name, text in (("token", "t\n"), ("ca.crt", "CA"), ("namespace", "capstan-system\n")):
        (tmp_path / name).write_text(text)
    credentials = read_service_account(tmp_path, {"KUBERNETES_SERVICE_HOST": "fd00::1"})
    assert (credentials.server, credentials.namespace) == ("https://[fd00::1]:443", "capstan-system")
    assert credentials.current_token() == "t"


def test_an_explicit_file_wins_over_the_environment_and_that_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explicit, named = (write(tmp_path / name, {"token": name}) for name in ("explicit", "named"))
    (tmp_path / ".kube").mkdir()
    write(tmp_path / ".kube" / "config", {"token": "default"})
    monkeypatch.setattr(module.Path, "home", lambda: tmp_path)
    monkeypatch.setattr(module, "SERVICE_ACCOUNT", tmp_path / "none")
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/absent:{named}")
    assert load_credentials(explicit).token == "explicit"
    assert load_credentials().token == "named"
    monkeypatch.delenv("KUBECONFIG")
    assert load_credentials().token == "default"
    (tmp_path / ".kube" / "config").unlink()
    with pytest.raises(CredentialsError, match="no kubeconfig"):
        load_credentials()


def test_only_https_has_tls_and_insecure_means_no_check(tmp_path: Path) -> None:
    assert Credentials("http://localhost").ssl_context() is None
    careful, careless = Credentials("https://h").ssl_context(), Credentials("https://h", is_insecure=True).ssl_context()
    assert careful is not None
    assert careless is not None
    assert (careful.verify_mode, careless.verify_mode) == (ssl.CERT_REQUIRED, ssl.CERT_NONE)
