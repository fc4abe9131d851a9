"""What the embedded API server reads: requests for any resource, in every form of body, selectors and tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import yaml

from capstan_local.client import Access
from capstan_local.cluster import LocalControlPlane
from capstan_local.quantity import parse_quantity
from capstan_local.schema import jsonpath
from capstan_local.server.api import Answer, Api
from capstan_local.server.errors import ApiError
from capstan_local.server.identity import Authenticator, User
from capstan_local.server.requests import parse_path
from tests.fuzz.loop import run
from tests.fuzz.scratch import scratch
from tests.fuzz.target import Target
from tests.support.embedded_server import config_map, pod

_ADMIN = User("kubernetes-admin", ("system:masters",))
_WIDGETS = "/apis/fuzz.example.com/v1/namespaces/default/widgets"
_JSON, _MERGE, _STRATEGIC, _JSON_PATCH, _APPLY, _PROTOBUF = (
    "application/json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/json-patch+json",
    "application/apply-patch+yaml",
    "application/vnd.kubernetes.protobuf",
)


def _crd() -> dict[str, Any]:
    item = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
    size = {
        "type": "integer", "minimum": 1, "maximum": 10, "default": 2,
        "x-kubernetes-validations": [{"rule": "self > 0", "message": "must be positive"}],
    }  # fmt: skip
    fields = {
        "size": size,
        "title": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 8},
        "until": {"type": "string", "format": "date-time"},
        "limit": {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True},
        "items": {
            "type": "array", "items": item, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
        },
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    }  # fmt: skip
    schema = {
        "type": "object",
        "properties": {"spec": {"type": "object", "properties": fields}, "status": {"type": "object"}},
    }
    version = {
        "name": "v1", "served": True, "storage": True, "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": schema},
        "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.items[?(@.name==\"a\")]"}],
        "selectableFields": [{"jsonPath": ".spec.title"}],
    }  # fmt: skip
    return {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.fuzz.example.com"},
        "spec": {
            "group": "fuzz.example.com", "scope": "Namespaced", "versions": [version],
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
        },
    }  # fmt: skip


_WIDGET = {
    "apiVersion": "fuzz.example.com/v1", "kind": "Widget", "metadata": {"name": "w"},
    "spec": {"size": 3, "title": "abc", "until": "2026-01-01T00:00:00Z", "limit": "5", "items": [{"name": "a"}]},
}  # fmt: skip


@cache
def _server() -> Api:
    """With a pod, a ConfigMap and a Widget in it; every further write is a dry run, so that it stays what it is."""
    plane = LocalControlPlane(scratch() / "plane")
    run(plane.__aenter__())
    assert plane.api is not None
    api = plane.api
    for path, body in (
        ("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", _crd()),
        ("/api/v1/namespaces/default/pods", pod("p")),
        ("/api/v1/namespaces/default/configmaps", config_map("c", key="value")),
        (_WIDGETS, _WIDGET),
    ):
        _call(api, "POST", path, {}, {"Content-Type": _JSON}, orjson.dumps(body))
    return api


def _call(api: Api, method: str, path: str, query: dict[str, str], headers: Mapping[str, str], body: bytes) -> Answer:
    """Raises ApiError."""
    asked = parse_path(api.catalog, method, path, query)
    if asked.verb == "watch":
        api.open_watch(asked, query, headers.get("Accept", "")).close()
        return Answer(200, b"")
    if asked.verb == "connect":
        raise ApiError(501, "nobody listens to a node here")
    return run(api.answer(asked, query, headers, body, _ADMIN))


def _require_refusal(error: ApiError) -> None:
    assert 400 <= error.code < 500 or error.code in (501, 504), error
    orjson.dumps(error.status())


def _answered(method: str, path: str, query: dict[str, str], headers: Mapping[str, str], body: bytes) -> bool:
    if method not in ("GET", "HEAD"):
        query = {**query, "dryRun": "All"}
    try:
        answer = _call(_server(), method, path, query, headers, body)
    except ApiError as error:
        _require_refusal(error)
        return False
    assert not any("\n" in warning or "\r" in warning for warning in answer.warnings), "a header is one line"
    return True


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    body: Any = None
    content_type: str = _JSON
    query: Mapping[str, str] | None = None

    def written(self) -> bytes:
        document = {"method": self.method, "path": self.path, "type": self.content_type, "query": self.query or {}}
        return json.dumps({**document, "body": self.body}).encode()


def _request(data: bytes) -> bool:
    """A request as a JSON document, its body in it: so both can be bent."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return False
    if not isinstance(document, dict):
        return False
    method, path, kind, query = (document.get(key) for key in ("method", "path", "type", "query"))
    if not (isinstance(method, str) and isinstance(path, str) and isinstance(kind, str) and isinstance(query, dict)):
        return False
    try:
        body = json.dumps(document.get("body")).encode()
        said = {str(name): str(value) for name, value in query.items()}
        quote(path + kind + "".join((*said, *said.values())))
    except (RecursionError, UnicodeEncodeError):
        return False  # nothing that a client could send
    return _answered(method, path, said, {"Content-Type": kind}, body)


_PODS, _MAPS = "/api/v1/namespaces/default/pods", "/api/v1/namespaces/default/configmaps"
_READS = (
    _Request("GET", _PODS, query={"labelSelector": "app in (x,y),!z", "fieldSelector": "status.phase!=Failed"}),
    _Request("GET", f"{_PODS}/p"),
    _Request("GET", _PODS, query={"limit": "1", "continue": "", "resourceVersion": "0"}),
    _Request("GET", _WIDGETS, query={"watch": "true", "resourceVersion": "0", "fieldSelector": "spec.title=abc"}),
)
_WRITES = (
    _Request("POST", _PODS, {**pod("q", volumes=[{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}])}),
    _Request("POST", _MAPS, config_map("d", key="value"), query={"fieldValidation": "Strict"}),
    _Request("POST", _WIDGETS, {**_WIDGET, "metadata": {"generateName": "w-", "labels": {"a": "b"}}}),
    _Request("PUT", f"{_MAPS}/c", config_map("c", key="other")),
    _Request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", {
        **_crd(), "metadata": {"name": "gadgets.fuzz.example.com"},
        "spec": {**_crd()["spec"], "names": {"plural": "gadgets", "singular": "gadget", "kind": "Gadget"}},
    }),
    _Request("POST", "/apis/authentication.k8s.io/v1/tokenreviews",
             {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "x"}}),
    _Request("DELETE", f"{_PODS}/p", {"gracePeriodSeconds": 3, "propagationPolicy": "Background"}),
    _Request("DELETE", _PODS, {}, query={"labelSelector": "app=x"}),
    _Request("POST", f"{_PODS}/p/binding",
             {"apiVersion": "v1", "kind": "Binding", "target": {"kind": "Node", "name": "n"}}),
)  # fmt: skip
_ORDERED = {"containers": [{"name": "c", "image": "i:2"}], "$setElementOrder/containers": [{"name": "c"}]}
_CONDITIONS = {"conditions": [{"type": "Ready", "status": "True"}, {"$patch": "delete", "type": "X"}]}
_OPERATIONS = [
    {"op": "test", "path": "/data/key", "value": "value"},
    {"op": "add", "path": "/data/b", "value": "c"},
    {"op": "move", "from": "/data/b", "path": "/data/d"},
]
_PATCHES = (
    _Request("PATCH", f"{_PODS}/p", {"metadata": {"labels": {"a": "b", "app": None}}}, _MERGE),
    _Request("PATCH", f"{_PODS}/p", {"spec": _ORDERED}, _STRATEGIC),
    _Request("PATCH", f"{_PODS}/p/status", {"status": _CONDITIONS}, _STRATEGIC),
    _Request("PATCH", f"{_MAPS}/c", _OPERATIONS, _JSON_PATCH),
    _Request("PATCH", f"{_MAPS}/c", config_map("c", other="value"), _APPLY, {"fieldManager": "m", "force": "true"}),
    _Request("PATCH", f"{_WIDGETS}/w", _WIDGET, _APPLY, {"fieldManager": "m"}),
    _Request("PATCH", f"{_WIDGETS}/w", {"spec": {"items": [{"name": "b"}]}}, _MERGE),
)


def _requests(*requests: _Request) -> Callable[[], Sequence[bytes]]:
    return lambda: [request.written() for request in requests]


def _body(content_type: str) -> Callable[[bytes], bool]:
    """A body to the byte; what it creates is a ConfigMap."""

    def feed(data: bytes) -> bool:
        query = {"fieldValidation": "Strict"} if content_type == _JSON else {}
        return _answered("POST", _MAPS, query, {"Content-Type": content_type}, data)

    return feed


def _apply(data: bytes) -> bool:
    return _answered("PATCH", f"{_MAPS}/c", {"fieldManager": "m"}, {"Content-Type": _APPLY}, data)


def _block(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


def _protobuf() -> list[bytes]:
    named = _block(1, _block(1, b"d") + _block(11, _block(1, b"app") + _block(2, b"x")))
    raw = named + _block(2, _block(1, b"key") + _block(2, b"value"))
    return [b"k8s\0" + _block(1, _block(1, b"v1") + _block(2, b"ConfigMap")) + _block(2, raw)]


def _selectors(data: bytes) -> bool:
    """The first line is a label selector, the second a field selector, the third a list's token."""
    label, _, rest = data.decode(errors="replace").partition("\n")
    fields, _, token = rest.partition("\n")
    query = {"labelSelector": label, "fieldSelector": fields, "continue": token, "limit": "1" if token else ""}
    return _answered("GET", _PODS, query, {"Accept": "application/json;as=Table;g=meta.k8s.io;v=v1"}, b"")


def _token(data: bytes) -> bool:
    token = data.decode(errors="replace")
    return Authenticator("secret").user_of(token) is not None


def _issued() -> list[bytes]:
    return [Authenticator("secret").issue("default", "a", "u", ["x"], 10**9).encode()]


def _quantity(data: bytes) -> bool:
    try:
        parse_quantity(data.decode(errors="replace"))
    except ValueError:
        return False
    return True


def _path(data: bytes) -> bool:
    seen = {"status": {"conditions": [{"type": "Ready", "status": "True", "age": 3}], "list": [[1], {"a": "b"}]}}
    try:
        jsonpath.find(data.decode(errors="replace"), seen)
    except ValueError:
        return False
    return True


def _client_kubeconfig(data: bytes) -> bool:
    path = Path(scratch() / "client-kubeconfig")
    path.write_bytes(data)
    try:
        Access.from_kubeconfig(path)
    except ValueError:
        return False
    return True


def _kubeconfig() -> list[bytes]:
    document = {
        "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }  # fmt: skip
    return [json.dumps(document).encode(), yaml.safe_dump(document).encode()]


_STATUS = "ApiError 4xx"

TARGETS = (
    Target("api-reads", "clients", "local.server.listing, watch", _STATUS, "json", _requests(*_READS), _request),
    Target("api-writes", "clients", "local.server.writes, validation", _STATUS, "json", _requests(*_WRITES), _request),
    Target("api-patches", "clients", "local.schema.patches, managed_fields", _STATUS, "json", _requests(*_PATCHES),
           _request),
    Target("api-json", "clients", "local.server.decoding", _STATUS, "json",
           lambda: [orjson.dumps(config_map("d", key="value"))], _body(_JSON)),
    Target("api-yaml", "clients", "local.server.decoding", _STATUS, "lines",
           lambda: [yaml.safe_dump(config_map("d", key="value")).encode()], _body("application/yaml")),
    Target("api-apply", "clients", "local.server.decoding", _STATUS, "lines",
           lambda: [yaml.safe_dump(config_map("c", key="value")).encode()], _apply),
    Target("api-protobuf", "clients", "local.server.protobuf", _STATUS, "bytes", _protobuf, _body(_PROTOBUF)),
    Target("selectors", "clients", "local.server.selectors", _STATUS, "lines",
           lambda: [b"app in (x, y),!z,a!=b\nmetadata.name!=q,status.phase=Running\n"], _selectors),
    Target("token", "anybody", "local.server.identity", "nobody", "bytes", _issued, _token),
    Target("quantity", "clients", "local.quantity", "ValueError", "bytes", lambda: [b"1500m", b"1.5Gi", b"1e3"],
           _quantity),
    Target("jsonpath", "authors of CRDs", "local.schema.jsonpath", "ValueError", "bytes",
           lambda: [b'.status.conditions[?(@.type=="Ready")].status', b"{.status.list[*]}", b"..type"], _path),
    Target("client-kubeconfig", "users", "local.client.Access", "ValueError", "json", _kubeconfig, _client_kubeconfig),
)  # fmt: skip
