"""Where the API server is and how to prove who we are: kubeconfig file, or the pod's service account."""

import base64
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from capstan_runtime.contract.env import host_path

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's: the one in Python takes seconds for some thousand brackets."""
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class CredentialsError(Exception):
    """The configuration cannot be used; the text names the file, the field and the fix."""


@dataclass(slots=True)
class Credentials:
    """One API server and one identity. Exactly one of token, token file and client certificate proves it."""

    server: str
    """Base URL without a trailing slash."""
    ca_pem: bytes | None = None
    """None: the system's certificate authorities."""
    is_insecure: bool = False
    """The server's certificate is not checked."""
    certificate_pem: bytes | None = None
    key_pem: bytes | None = None
    token: str | None = None
    token_file: Path | None = None
    """Read again whenever it changes: projected tokens live about an hour."""
    namespace: str = "default"
    """Of the kubeconfig context, or the pod's own."""
    source: Path | None = field(default=None, compare=False)
    """The file, or folder, that says all this; for messages."""
    _token_mtime: float = field(default=-1.0, repr=False)

    def current_token(self) -> str | None:
        """The bearer token to send now; None: a client certificate or nothing speaks for us."""
        if self.token_file is not None:
            mtime = self.token_file.stat().st_mtime
            if mtime != self._token_mtime:
                self.token = self.token_file.read_text().strip()
                self._token_mtime = mtime
        return self.token

    def forget_token(self) -> None:
        """Read the token file again at the next request, changed or not (after a 401)."""
        self._token_mtime = -1.0

    def ssl_context(self) -> ssl.SSLContext | None:
        """The TLS settings; None for plain http. Raises CredentialsError."""
        if self.server.startswith("http://"):
            return None
        try:
            context = ssl.create_default_context(cadata=self.ca_pem.decode() if self.ca_pem else None)
        except (ssl.SSLError, UnicodeDecodeError) as error:
            raise CredentialsError(f"{self.source}: certificate-authority is no PEM certificate: {error}") from error
        if self.is_insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate_pem and self.key_pem:
            # The ssl module reads certificate chains from files only.
            with tempfile.TemporaryDirectory(prefix="capstan-") as folder:
                pair = Path(folder) / "client.pem"
                pair.touch(mode=0o600)
                pair.write_bytes(self.certificate_pem + b"\n" + self.key_pem)
                try:
                    context.load_cert_chain(pair)
                except ssl.SSLError as error:
                    raise CredentialsError(
                        f"{self.source}: client-certificate and client-key do not fit: {error.reason}"
                    ) from error
        return context


def load_credentials(kubeconfig: Path | None = None, context: str | None = None) -> Credentials:
    """The credentials of `kubeconfig`, or else of $KUBECONFIG, the pod's service account, or ~/.kube/config.

    Raises CredentialsError when there are none, or they need a helper program.
    """
    if kubeconfig is not None:
        return read_kubeconfig(kubeconfig, context)
    listed = [Path(part) for part in os.environ.get("KUBECONFIG", "").split(os.pathsep) if part]
    if existing := [path for path in listed if path.exists()]:
        return read_kubeconfig(existing[0], context)
    account = Path(host_path(str(SERVICE_ACCOUNT), os.environ))
    if context is None and (account / "token").exists() and "KUBERNETES_SERVICE_HOST" in os.environ:
        return read_service_account(account, os.environ)
    default = Path.home() / ".kube" / "config"
    if default.exists():
        return read_kubeconfig(default, context)
    raise CredentialsError(f"no kubeconfig: neither --kubeconfig nor $KUBECONFIG nor {default} names a file")


def read_service_account(folder: Path, environ: Mapping[str, str]) -> Credentials:
    """The credentials Kubernetes mounts into a pod at `folder`."""
    host, port = environ["KUBERNETES_SERVICE_HOST"], environ.get("KUBERNETES_SERVICE_PORT", "443")
    return Credentials(
        server=f"https://{f'[{host}]' if ':' in host else host}:{port}",
        ca_pem=(folder / "ca.crt").read_bytes(),
        token_file=folder / "token",
        namespace=(folder / "namespace").read_text().strip(),
        source=folder,
    )


def read_kubeconfig(path: Path, context: str | None = None) -> Credentials:
    """The credentials of one context (default: the current one) of a kubeconfig file."""
    document = _parsed(path)
    wanted = context or document.get("current-context")
    if not wanted:
        raise CredentialsError(f"{path}: current-context is not set; choose one with --context")
    chosen = _named(document, "contexts", "context", wanted, path)
    cluster = _named(document, "clusters", "cluster", chosen.get("cluster", ""), path)
    user = _named(document, "users", "user", chosen["user"], path) if chosen.get("user") else {}
    _refuse_unsupported(cluster, user, path)
    if not cluster.get("server"):
        raise CredentialsError(f"{path}: clusters[{chosen['cluster']}].server is not set")
    return Credentials(
        server=str(cluster["server"]).rstrip("/"),
        ca_pem=_pem(cluster, "certificate-authority", path),
        is_insecure=bool(cluster.get("insecure-skip-tls-verify", False)),
        certificate_pem=_pem(user, "client-certificate", path),
        key_pem=_pem(user, "client-key", path),
        token=user.get("token"),
        token_file=path.parent / user["tokenFile"] if user.get("tokenFile") else None,
        namespace=chosen.get("namespace") or "default",
        source=path,
    )


def _parsed(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
        document = yaml.load(text, Loader=_LOADER)  # nosec B506  # a SafeLoader
    except OSError as error:
        raise CredentialsError(f"{path}: {error}") from error
    except Exception as error:  # PyYAML lets through what its constructors stumble over, of any type
        raise CredentialsError(f"{path}: is no YAML: {' '.join(str(error).split())}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise CredentialsError(f"{path}: holds a {type(document).__name__}; a kubeconfig is an object")
    return document


def _named(document: dict[str, Any], section: str, key: str, name: str, path: Path) -> dict[str, Any]:
    entries = document.get(section) or []
    for entry in entries if isinstance(entries, list) else ():
        found = entry.get(key) if isinstance(entry, dict) and entry.get("name") == name else None
        if isinstance(found, dict):
            return found
    raise CredentialsError(f"{path}: {section} has no entry named {name!r} with a {key}")


def _refuse_unsupported(cluster: dict[str, Any], user: dict[str, Any], path: Path) -> None:
    if "exec" in user or "auth-provider" in user:
        helper = (user.get("exec") or {}).get("command", "an auth provider")
        raise CredentialsError(
            f"{path}: the user logs in with {helper}, which is not supported; run the operator in the cluster, or "
            f"use a token: kubectl create token SERVICE_ACCOUNT"
        )
    if "username" in user:
        raise CredentialsError(f"{path}: basic authentication is not supported; use a token or a client certificate")
    for unsupported in ("proxy-url", "tls-server-name"):
        if unsupported in cluster:
            raise CredentialsError(f"{path}: {unsupported} is not supported; use a server address that needs none")


def _pem(entry: Mapping[str, Any], key: str, path: Path) -> bytes | None:
    """Inline data wins over a file, as in kubectl; relative files are beside the kubeconfig."""
    if inline := entry.get(f"{key}-data"):
        try:
            return base64.b64decode(str(inline), validate=True)
        except ValueError as error:
            raise CredentialsError(f"{path}: {key}-data is not base64: {error}") from error
    if file := entry.get(key):
        try:
            return (path.parent / str(file)).read_bytes()
        except OSError as error:
            raise CredentialsError(f"{path}: {key}: {error}") from error
    return None
