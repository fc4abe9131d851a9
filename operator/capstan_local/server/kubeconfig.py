"""The kubeconfig that kubectl, Helm and the clients use."""

import base64
import secrets
from pathlib import Path

import yaml

from capstan_local.server.certificates import write_private

CONTEXT = "capstan-local"


def ensure_token(path: Path) -> str:
    """The token in `path`, made at first start; readable by the owner alone."""
    if path.exists():
        token = path.read_text().strip()
        if token:
            return token
    token = secrets.token_urlsafe(32)
    write_private(path, token.encode())
    return token


def write_kubeconfig(path: Path, url: str, ca: Path, token: str) -> None:
    """A kubeconfig with one context, everything embedded."""
    authority = base64.b64encode(ca.read_bytes()).decode()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": CONTEXT, "cluster": {"server": url, "certificate-authority-data": authority}}],
        "users": [{"name": CONTEXT, "user": {"token": token}}],
        "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": CONTEXT, "namespace": "default"}}],
        "current-context": CONTEXT,
        "preferences": {},
    }
    write_private(path, yaml.safe_dump(config, sort_keys=False).encode())
