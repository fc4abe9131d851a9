"""A small asyncio client of any Kubernetes API server: one pooled aiohttp session, plain dicts, orjson."""

import asyncio
import base64
import ssl
import tempfile
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import aiohttp
import orjson
import yaml

Object = dict[str, Any]
Key = tuple[str, str]
"""(namespace, name); the namespace of a cluster-scoped object is ""."""
ChangeType = Literal["ADDED", "MODIFIED", "DELETED"]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's: the one in Python takes seconds for some thousand brackets."""
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"

REQUEST_SECONDS = 30.0
WATCH_SECONDS = 290
"""Asked of the server for one watch; kube-apiserver itself ends watches after 5 to 10 minutes."""
PAGE_SIZE = 500
THROTTLED_TRIES = 4


class ApiError(Exception):
    """The API server answered with a Status of kind Failure."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message


class Unreachable(Exception):
    """The API server did not answer: connection refused, reset or timed out."""


@dataclass(frozen=True, slots=True)
class Resource:
    """What the URL of a kind is made of."""

    group: str
    version: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        middle = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return root + middle + f"/{self.plural}" + "".join(f"/{part}" for part in (name, subresource) if part)


PODS = Resource("", "v1", "pods")
NODES = Resource("", "v1", "nodes", namespaced=False)
NAMESPACES = Resource("", "v1", "namespaces", namespaced=False)
EVENTS = Resource("", "v1", "events")
CONFIG_MAPS = Resource("", "v1", "configmaps")
SECRETS = Resource("", "v1", "secrets")
SERVICES = Resource("", "v1", "services")
ENDPOINTS = Resource("", "v1", "endpoints")
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts")
CLAIMS = Resource("", "v1", "persistentvolumeclaims")
VOLUMES = Resource("", "v1", "persistentvolumes", namespaced=False)
LEASES = Resource("coordination.k8s.io", "v1", "leases")
STORAGE_CLASSES = Resource("storage.k8s.io", "v1", "storageclasses", namespaced=False)
DEPLOYMENTS = Resource("apps", "v1", "deployments")
REPLICA_SETS = Resource("apps", "v1", "replicasets")
JOBS = Resource("batch", "v1", "jobs")


def key_of(obj: Mapping[str, Any]) -> Key:
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def version_of(obj: Mapping[str, Any]) -> int:
    """The resourceVersion as a number. Clients may compare versions of one object since Kubernetes 1.35; the servers
    this client is used with have always counted upward."""
    return int(obj["metadata"].get("resourceVersion") or 0)


@dataclass(frozen=True, slots=True)
class Access:
    """Where an API server is and how to be let in."""

    server: str
    ssl_context: ssl.SSLContext | None = None
    """None for plain http."""
    token: str | None = None

    @classmethod
    def from_kubeconfig(cls, path: Path, context: str | None = None) -> Self:
        """The access that `context` (None: the current one) of a kubeconfig file describes.

        Understands CA, client certificate and token, each inline or as a file. Raises ValueError naming the file and
        the field for anything else (exec plugins, auth providers, passwords) and for dangling names.
        """
        document = _document(path)

        def named(section: str, name: str | None) -> Object:
            entries = document.get(section)
            for entry in entries if isinstance(entries, list) else ():
                found = entry.get(section.removesuffix("s")) if isinstance(entry, dict) else None
                if isinstance(found, dict) and entry.get("name") == name:
                    return found
            raise ValueError(f"{path}: {section} has no entry named {name!r}")

        chosen = named("contexts", context or document.get("current-context"))
        cluster, user = named("clusters", chosen.get("cluster")), named("users", chosen.get("user"))
        unsupported = sorted({"exec", "auth-provider", "username", "password"} & user.keys())
        if unsupported:
            raise ValueError(f"{path}: user.{unsupported[0]} is not supported; use a token or a client certificate")
        token = user.get("token")
        if not token and "tokenFile" in user:
            token = _beside(path, str(user["tokenFile"])).read_text().strip()
        server = str(cluster.get("server", "")).rstrip("/")
        if not server:
            raise ValueError(f"{path}: cluster.server is not set")
        if not server.startswith(("http://", "https://")):
            raise ValueError(f"{path}: cluster.server: {server} is no URL; give https://HOST:PORT")
        return cls(server, _ssl_context(path, cluster, user) if server.startswith("https") else None, token)


def _document(path: Path) -> Object:
    try:
        text = path.read_text("utf-8")
        document = yaml.load(text, Loader=_LOADER)  # nosec B506  # a SafeLoader
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # PyYAML lets through what its constructors stumble over, of any type
        raise ValueError(f"{path}: is no YAML: {' '.join(str(error).split())}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ValueError(f"{path}: holds a {type(document).__name__}; a kubeconfig is an object")
    return document


def _beside(kubeconfig: Path, name: str) -> Path:
    return kubeconfig.parent / Path(name).expanduser()


def _ssl_context(path: Path, cluster: Object, user: Object) -> ssl.SSLContext:
    authority = _pem(path, cluster, "certificate-authority")
    try:
        context = ssl.create_default_context(cadata=authority.decode() if authority else None)
    except (ssl.SSLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: certificate-authority is no PEM certificate: {error}") from error
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    certificate, key = _pem(path, user, "client-certificate"), _pem(path, user, "client-key")
    if certificate and key:
        with tempfile.NamedTemporaryFile(prefix="client-", suffix=".pem") as pair:  # ssl loads keys from files only
            pair.write(certificate + b"\n" + key)
            pair.flush()
            try:
                context.load_cert_chain(pair.name)
            except ssl.SSLError as error:
                raise ValueError(f"{path}: client-certificate and client-key do not fit: {error.reason}") from error
    return context


def _pem(path: Path, section: Object, field_name: str) -> bytes | None:
    inline, name = section.get(f"{field_name}-data"), section.get(field_name)
    if inline:
        try:
            return base64.b64decode(str(inline), validate=True)
        except ValueError as error:
            raise ValueError(f"{path}: {field_name}-data is not base64: {error}") from error
    try:
        return _beside(path, str(name)).read_bytes() if name else None
    except OSError as error:
        raise ValueError(f"{path}: {field_name}: {name} cannot be read: {error.strerror}") from error


class Client:
    """One API server, for one event loop. Use as `async with Client(access) as client`.

    Every call raises ApiError when the server refuses and Unreachable when it does not answer within the deadline;
    429 is retried as often as the server's Retry-After and `THROTTLED_TRIES` allow.
    """

    def __init__(self, access: Access) -> None:
        self.access = access
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        headers = {"User-Agent": "capstan-local", "Accept": "application/json"}
        if self.access.token:
            headers["Authorization"] = f"Bearer {self.access.token}"
        connector = aiohttp.TCPConnector(ssl=self.access.ssl_context or True, limit=64, keepalive_timeout=60)
        self._session = aiohttp.ClientSession(self.access.server, connector=connector, headers=headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the client is used outside `async with`")
        return self._session

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        timeout: float = REQUEST_SECONDS,  # noqa: ASYNC109  # one deadline for connect, send and read
    ) -> Object:
        """The parsed JSON of the answer."""
        data = None if body is None else orjson.dumps(body)
        headers = {} if data is None else {"Content-Type": content_type}
        deadline = aiohttp.ClientTimeout(total=timeout)
        for attempt in range(1, THROTTLED_TRIES + 1):
            try:
                async with self.session.request(
                    method, path, data=data, params=params, headers=headers, timeout=deadline
                ) as response:
                    payload = await response.read()
                    if response.status == 429 and attempt < THROTTLED_TRIES:
                        pause = min(float(response.headers.get("Retry-After", "1")), 5.0)
                    else:
                        return _parsed(response.status, payload)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise Unreachable(f"{method} {self.access.server}{path}: {error or type(error).__name__}") from error
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Object:
        return await self.request("GET", resource.path(namespace, name))

    async def list(
        self, resource: Resource, namespace: str | None = None, **selectors: str
    ) -> tuple[list[Object], str]:
        """All objects, read in pages, and the resourceVersion to watch from.

        `selectors`: labelSelector, fieldSelector.
        """
        items: list[Object] = []
        params = {"limit": str(PAGE_SIZE), **selectors}
        while True:
            page = await self.request("GET", resource.path(namespace), params=params)
            items.extend(page.get("items") or [])
            metadata = page.get("metadata", {})
            if not metadata.get("continue"):
                return items, metadata.get("resourceVersion", "0")
            params["continue"] = metadata["continue"]

    async def create(
        self, resource: Resource, obj: Object, *, name: str | None = None, subresource: str | None = None
    ) -> Object:
        """What the server made of `obj`. With `name` and `subresource`: POST to that subresource (binding, token)."""
        namespace = obj.get("metadata", {}).get("namespace")
        return await self.request("POST", resource.path(namespace, name, subresource), obj)

    async def replace(self, resource: Resource, obj: Object, subresource: str | None = None) -> Object:
        namespace, name = key_of(obj)
        return await self.request("PUT", resource.path(namespace, name, subresource), obj)

    async def patch(
        self,
        resource: Resource,
        key: Key,
        body: Any,
        *,
        subresource: str | None = None,
        content_type: str = MERGE_PATCH,
    ) -> Object:
        namespace, name = key
        return await self.request("PATCH", resource.path(namespace, name, subresource), body, content_type=content_type)

    async def delete(
        self,
        resource: Resource,
        key: Key,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
        propagation: str | None = None,
    ) -> None:
        """Asks for deletion; returns quietly when the object (or the one with this `uid`) is gone already."""
        options: Object = {"kind": "DeleteOptions", "apiVersion": "v1"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        if propagation is not None:
            options["propagationPolicy"] = propagation
        namespace, name = key
        try:
            await self.request("DELETE", resource.path(namespace, name), options)
        except ApiError as error:
            if error.code == 404 or (uid is not None and error.code == 409):
                return
            raise

    async def watch(
        self, resource: Resource, resource_version: str, namespace: str | None = None, **selectors: str
    ) -> AsyncGenerator[tuple[str, Object], None]:
        """(type, object) of every change after `resource_version` until the server ends the watch. ERROR is raised."""
        params = {
            "watch": "true",
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
            **selectors,
        }
        # A server that died without closing the connection is noticed when its own deadline has passed.
        deadline = aiohttp.ClientTimeout(total=WATCH_SECONDS + 15, sock_connect=10)
        try:
            async with self.session.get(resource.path(namespace), params=params, timeout=deadline) as response:
                if response.status != 200:
                    _parsed(response.status, await response.read())
                rest = b""
                async for chunk in response.content.iter_any():  # not by line: a line may be larger than its buffer
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        change = orjson.loads(line)
                        if change["type"] == "ERROR":
                            status = change["object"]
                            raise ApiError(status.get("code", 500), status.get("reason", ""), status.get("message", ""))
                        yield change["type"], change["object"]
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unreachable(f"watch {resource.plural}: {error or type(error).__name__}") from error


def _parsed(code: int, payload: bytes) -> Object:
    try:
        document: Any = orjson.loads(payload) if payload else {}
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        document = {"message": payload[:500].decode(errors="replace")}
    if code < 400:
        return dict(document)
    raise ApiError(code, document.get("reason", ""), document.get("message", ""))
