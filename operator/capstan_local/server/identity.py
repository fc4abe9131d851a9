"""Who may talk to the server: the holder of the admin token, and service accounts whose tokens it signed."""

import base64
import binascii
import hashlib
import hmac
import time
from dataclasses import dataclass
from typing import Any

import orjson

ISSUER = "https://kubernetes.default.svc"


@dataclass(frozen=True, slots=True)
class User:
    """An authenticated client."""

    name: str
    groups: tuple[str, ...]
    uid: str = ""

    def as_dict(self) -> dict[str, Any]:
        info: dict[str, Any] = {"username": self.name, "groups": list(self.groups)}
        return {**info, "uid": self.uid} if self.uid else info


_ADMIN = User("kubernetes-admin", ("system:masters", "system:authenticated"))


class Authenticator:
    """Knows the admin token and signs service account tokens (JWT, HS256) with a key derived from it."""

    def __init__(self, admin_token: str) -> None:
        self._admin_token = admin_token.encode()
        self._key = hashlib.sha256(b"service-accounts:" + self._admin_token).digest()

    def user_of(self, token: str) -> User | None:
        """None for a token that is unknown, forged or expired."""
        if not token:
            return None
        if hmac.compare_digest(token.encode(), self._admin_token):
            return _ADMIN
        claims = self._verified_claims(token)
        if claims is None or claims.get("exp", 0) < time.time():
            return None
        account = claims["kubernetes.io"]
        namespace, name = account["namespace"], account["serviceaccount"]["name"]
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
        return User(f"system:serviceaccount:{namespace}:{name}", groups, account["serviceaccount"]["uid"])

    def issue(self, namespace: str, name: str, uid: str, audiences: list[str], seconds: int) -> str:
        """A token for a service account that is valid for so many seconds."""
        now = int(time.time())
        claims = {
            "aud": audiences,
            "exp": now + seconds,
            "iat": now,
            "nbf": now,
            "iss": ISSUER,
            "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": name, "uid": uid}},
            "sub": f"system:serviceaccount:{namespace}:{name}",
        }
        signed = f"{_encode(orjson.dumps({'alg': 'HS256', 'typ': 'JWT'}))}.{_encode(orjson.dumps(claims))}"
        return f"{signed}.{_encode(self._sign(signed))}"

    def _sign(self, text: str) -> bytes:
        return hmac.new(self._key, text.encode(), hashlib.sha256).digest()

    def _verified_claims(self, token: str) -> dict[str, Any] | None:
        signed, _, signature = token.rpartition(".")
        try:
            if not hmac.compare_digest(_decode(signature), self._sign(signed)):
                return None
            claims: dict[str, Any] = orjson.loads(_decode(signed.partition(".")[2]))
        except (binascii.Error, ValueError):
            return None
        return claims


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
