"""An API server in this process that can be told to misbehave: the faults a real one will not produce on demand.

It knows just enough of Kubernetes for the operator's own calls, answers 403 to everything the operator's own table of
rights does not allow, and writes down every request. What is normal belongs to the tests against real servers.
"""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from capstan_operator.cluster.kinds import (
    BENCHMARKS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    EVENTS,
    HTTP_ROUTES,
    INFERENCE_SERVICES,
    LEASES,
    NAMESPACES,
    PODS,
    RULES,
    SECRETS,
    SERVICES,
    TRAINING_JOBS,
    Resource,
)

OPERATOR_NAMESPACE = "capstan"
KINDS = (
    TRAINING_JOBS,
    INFERENCE_SERVICES,
    BENCHMARKS,
    PODS,
    SECRETS,
    SERVICES,
    DEPLOYMENTS,
    HTTP_ROUTES,
    EVENTS,
    LEASES,
    NAMESPACES,
    CONFIG_MAPS,
)
RESOURCES = {(r.group, r.version, r.plural): r for r in KINDS}
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}

Document = dict[str, Any]
Key = tuple[str, str, str]
"""(plural, namespace, name)"""


@dataclass
class Call:
    """One request, as an audit log has it."""

    verb: str
    resource: str
    """Plural, with `/subresource`."""
    namespace: str
    name: str
    is_dry_run: bool = False
    status: int = 0
    body: Document = field(default_factory=dict)
    at: float = 0.0

    @property
    def is_write(self) -> bool:
        return self.verb in ("create", "update", "patch", "delete") and not self.is_dry_run


@dataclass
class Fault:
    """What to do to the next `times` calls that match."""

    verb: str
    resource: str
    times: int
    status: int = 0
    """Answer this instead of doing it; 0: see the others."""
    retry_after: int | None = None
    loses_answer: bool = False
    """Do it, then break the connection."""
    hangs: bool = False
    """Do nothing and never answer."""
    delay: float = 0.0
    """Seconds until it is done."""
    late_answer: float = 0.0
    """Seconds between doing it and saying so."""
    name: str = ""


@dataclass
class Watcher:
    plural: str
    namespace: str
    labels: dict[str, str]
    lines: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)


class Refusal(Exception):
    def __init__(self, status: int, reason: str, message: str = "") -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


class FakeApi:
    """Use `async with serve_fake_api(tmp_path) as api`; `api.kubeconfig` is the file for the operator."""

    def __init__(self) -> None:
        self.objects: dict[Key, Document] = {}
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        self.version = 1000
        self.oldest_version = 0
        """Watches from before this get 410."""
        self.not_served: set[str] = {"httproutes"}
        """Plurals whose CRD is not there."""
        self.pods_linger = False
        """Deleted pods keep running with a deletionTimestamp until `remove` is called."""
        self.muted: set[str] = set()
        """Plurals whose watches deliver nothing for now."""
        self.url = ""
        self.kubeconfig = Path()
        self._log: list[tuple[int, str, Document]] = []
        self._watchers: list[Watcher] = []
        self._uids = 0

    # What a test does

    def put(self, resource: Resource, document: Document) -> Document:
        """Create or change an object behind the operator's back; status included."""
        namespace, name = document["metadata"]["namespace"], document["metadata"]["name"]
        old = self.objects.get((resource.plural, namespace, name))
        return self._store(resource, copy.deepcopy(document), "MODIFIED" if old else "ADDED", old)

    def change(self, resource: Resource, namespace: str, name: str, edit: Callable[[Document], None]) -> Document:
        document = copy.deepcopy(self.objects[resource.plural, namespace, name])
        edit(document)
        return self.put(resource, document)

    def remove(self, resource: Resource, namespace: str, name: str, *, cascades: bool = True) -> None:
        """Delete at once, and whatever it owns. A real garbage collector comes later: then not `cascades`."""
        document = self.objects.pop((resource.plural, namespace, name))
        self._publish("DELETED", resource.plural, document)
        if not cascades:
            return
        for (plural, child_namespace, child_name), child in list(self.objects.items()):
            owners = child["metadata"].get("ownerReferences") or []
            if any(owner["uid"] == document["metadata"]["uid"] for owner in owners):
                self.remove(next(r for r in RESOURCES.values() if r.plural == plural), child_namespace, child_name)

    def of(self, resource: Resource) -> list[Document]:
        return [document for key, document in self.objects.items() if key[0] == resource.plural]

    def get(self, resource: Resource, name: str, namespace: str = "default") -> Document:
        return self.objects[resource.plural, namespace, name]

    def writes(self, *resources: str) -> list[Call]:
        """Writes that were carried out; leases only when asked for."""
        wanted = resources or ("pods", "secrets", "trainingjobs", "trainingjobs/status", "events")
        return [call for call in self.calls if call.is_write and call.resource in wanted and call.status < 300]

    def fail(self, verb: str, resource: str, times: int = 1, **how: Any) -> Fault:
        self.faults.append(Fault(verb, resource, times, **how))
        return self.faults[-1]

    def forget_history(self) -> None:
        """As after a compaction: every watch from before now gets 410."""
        self.oldest_version = self.version
        self._log.clear()

    def end_watches(self, resource: Resource, error: int | None = None) -> None:
        """Close all watches of a resource, after an ERROR event with that code if one is given."""
        for watcher in [w for w in self._watchers if w.plural == resource.plural]:
            if error is not None:
                watcher.lines.put_nowait(_line("ERROR", _status(error, "Expired" if error == 410 else "InternalError")))
            watcher.lines.put_nowait(None)

    def watches(self, resource: Resource) -> int:
        return sum(watcher.plural == resource.plural for watcher in self._watchers)

    # Storage

    def _store(self, resource: Resource, document: Document, kind: str, old: Document | None) -> Document:
        metadata = document["metadata"]
        self.version += 1
        metadata["resourceVersion"] = str(self.version)
        if old is None:
            self._uids += 1
            metadata.setdefault("uid", f"uid-{self._uids}")
            metadata["creationTimestamp"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            metadata["generation"] = 1
        elif document.get("spec") != old.get("spec"):
            metadata["generation"] = old["metadata"].get("generation", 1) + 1
        document |= {"apiVersion": resource.group_path.split("/", 2)[2], "kind": resource.kind}
        self.objects[resource.plural, metadata["namespace"], metadata["name"]] = document
        self._publish(kind, resource.plural, document, old)
        if old is None and (owners := metadata.get("ownerReferences")):
            asyncio.get_running_loop().call_later(0.05, self._collect, resource, document, owners[0]["uid"])
        return document

    def _collect(self, resource: Resource, document: Document, owner: str) -> None:
        """The garbage collector: a child whose owner is gone goes too."""
        metadata = document["metadata"]
        known = self.objects.get((resource.plural, metadata["namespace"], metadata["name"]))
        is_orphan = all(one["metadata"]["uid"] != owner for one in self.objects.values())
        if known is not None and known["metadata"]["uid"] == metadata["uid"] and is_orphan:
            self.remove(resource, metadata["namespace"], metadata["name"])

    def _publish(self, kind: str, plural: str, document: Document, old: Document | None = None) -> None:
        if kind == "DELETED":
            self.version += 1
            document["metadata"]["resourceVersion"] = str(self.version)
        event = {"type": kind, "object": copy.deepcopy(document), "plural": plural}
        self._log.append((self.version, plural, event))
        for watcher in self._watchers:
            if watcher.plural == plural and plural not in self.muted and _matches(watcher, document):
                watcher.lines.put_nowait(_line(kind, event["object"]))
            elif watcher.plural == plural and old is not None and _matches(watcher, old):
                # It left what the selector selects: for this watcher it is gone.
                watcher.lines.put_nowait(_line("DELETED", event["object"]))

    # HTTP

    async def handle(self, request: web.Request) -> web.StreamResponse:
        found = _parse(request.path)
        if found is None:
            return self._discover(request.path)
        resource, namespace, name, subresource = found
        if request.method == "GET":
            verb = "watch" if request.query.get("watch") == "true" else "get" if name else "list"
        else:
            verb = VERBS[request.method]
        full = f"{resource.plural}/{subresource}" if subresource else resource.plural
        body = json.loads(await request.read() or b"{}")
        call = Call(verb, full, namespace, name, "dryRun" in request.query, 0, body, time.monotonic())
        self.calls.append(call)
        try:
            response = await self._answer(request, call, resource, subresource)
        except Refusal as refusal:
            response = web.json_response(_status(refusal.status, refusal.reason, str(refusal)), status=refusal.status)
        call.status = response.status
        return response

    async def _answer(
        self, request: web.Request, call: Call, resource: Resource, subresource: str
    ) -> web.StreamResponse:
        if not _is_allowed(resource.group, call):
            raise Refusal(403, "Forbidden", f"no rule allows {call.verb} {call.resource} {call.namespace}/{call.name}")
        fault = self._take_fault(call)
        if fault is not None and fault.delay:
            await asyncio.sleep(fault.delay)
        if fault is not None and fault.hangs:
            await asyncio.sleep(3600)
        if fault is not None and fault.status:
            headers = {"Retry-After": str(fault.retry_after)} if fault.retry_after is not None else {}
            return web.json_response(_status(fault.status, "Fault"), status=fault.status, headers=headers)
        if call.verb == "watch":
            return await self._watch(request, call)
        if call.verb == "list":
            return self._list(request, call)
        result, status = self._change(request, call, resource, subresource)
        if fault is not None and fault.late_answer:
            await asyncio.sleep(fault.late_answer)
        if fault is not None and fault.loses_answer:
            call.status = status
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(result, status=status)

    def _change(self, request: web.Request, call: Call, resource: Resource, subresource: str) -> tuple[Document, int]:
        key = (resource.plural, call.namespace, call.name or call.body.get("metadata", {}).get("name", ""))
        old = self.objects.get(key)
        if call.verb == "create":
            if old is not None:
                raise Refusal(409, "AlreadyExists", f"{key[2]} already exists")
            call.body["metadata"]["namespace"] = call.namespace
            if resource is PODS:
                call.body.setdefault("status", {"phase": "Pending"})
            return self._store(resource, call.body, "ADDED", None), 201
        if call.verb == "patch" and request.content_type == "application/apply-patch+yaml" and old is None:
            call.body["metadata"]["namespace"] = call.namespace
            return self._store(resource, call.body, "ADDED", None), 201
        if old is None:
            raise Refusal(404, "NotFound", f"{key[2]} not found")
        if call.verb == "get":
            return old, 200
        if call.verb == "delete":
            return self._delete(resource, call, old), 200
        _check_version(call.body, old)
        if call.body.get("metadata", {}).get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]:
            raise Refusal(409, "Conflict", f"{key[2]}: the UID in the object does not match")
        new = call.body if call.verb == "update" else _merged(old, call.body)
        if subresource == "status":
            new = old | {"status": new.get("status", {})}
        new["metadata"] = {**old["metadata"], **(new.get("metadata") or {})}
        if call.is_dry_run or new == old:
            return old, 200
        if old.get("immutable") and new.get("data") != old.get("data"):
            raise Refusal(422, "Invalid", f"{key[2]}: data: field is immutable when `immutable` is set")
        return self._store(resource, copy.deepcopy(new), "MODIFIED", old), 200

    def _delete(self, resource: Resource, call: Call, old: Document) -> Document:
        wanted = call.body.get("preconditions", {}).get("uid")
        if wanted and wanted != old["metadata"]["uid"]:
            raise Refusal(409, "Conflict", "the UID in the precondition does not match")
        if resource is PODS and self.pods_linger:
            metadata = old["metadata"] | {"deletionTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
            return self._store(resource, old | {"metadata": metadata}, "MODIFIED", old)
        self.remove(resource, call.namespace, call.name)
        return _status(200, "", "deleted")

    def _list(self, request: web.Request, call: Call) -> web.Response:
        plural = call.resource
        labels = _labels(request.query.get("labelSelector", ""))
        wanted = Watcher(plural, call.namespace, labels)
        items = [d for key, d in sorted(self.objects.items()) if key[0] == plural and _matches(wanted, d)]
        start, limit = int(request.query.get("continue") or 0), int(request.query.get("limit") or 0) or len(items)
        metadata = {"resourceVersion": str(self.version)}
        if start + limit < len(items):
            metadata["continue"] = str(start + limit)
        return web.json_response({"kind": "List", "metadata": metadata, "items": items[start : start + limit]})

    async def _watch(self, request: web.Request, call: Call) -> web.StreamResponse:
        since = int(request.query["resourceVersion"])
        response = web.StreamResponse()
        response.content_type = "application/json"
        await response.prepare(request)
        call.status = 200
        if since < self.oldest_version:
            await response.write(_line("ERROR", _status(410, "Expired", "too old resource version")))
            return response
        watcher = Watcher(call.resource, call.namespace, _labels(request.query.get("labelSelector", "")))
        for version, plural, event in self._log:
            if version > since and plural == watcher.plural and _matches(watcher, event["object"]):
                watcher.lines.put_nowait(_line(event["type"], event["object"]))
        self._watchers.append(watcher)
        try:
            while (line := await watcher.lines.get()) is not None:
                await response.write(line)
        except ConnectionError:
            pass  # the client went away
        finally:
            self._watchers.remove(watcher)
        return response

    def _take_fault(self, call: Call) -> Fault | None:
        for fault in self.faults:
            if (fault.verb, fault.resource) == (call.verb, call.resource) and fault.name in ("", call.name):
                fault.times -= 1
                if fault.times <= 0:
                    self.faults.remove(fault)
                return fault
        return None

    def _discover(self, path: str) -> web.Response:
        groups = {(r.group, r.version) for r in RESOURCES.values() if r.group}
        if path == "/version":
            return web.json_response({"major": "1", "minor": "33", "gitVersion": "v1.33.0"})
        if path == "/api":
            return web.json_response({"kind": "APIVersions", "versions": ["v1"]})
        if path == "/apis":
            listed = [
                {
                    "name": group,
                    "versions": [{"groupVersion": f"{group}/{version}", "version": version}],
                    "preferredVersion": {"groupVersion": f"{group}/{version}", "version": version},
                }
                for group, version in sorted(groups)
            ]
            return web.json_response({"kind": "APIGroupList", "groups": listed})
        served = [r for r in RESOURCES.values() if r.group_path == path and r.plural not in self.not_served]
        if not served:
            return web.json_response(_status(404, "NotFound"), status=404)
        verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
        items = [
            {"name": r.plural, "singularName": r.kind.lower(), "kind": r.kind, "namespaced": True, "verbs": verbs}
            for r in served
        ]
        if path == "/api/v1":  # kopf does not start before it has seen that there are namespaces
            items.append(
                {"name": "namespaces", "singularName": "", "kind": "Namespace", "namespaced": False, "verbs": verbs}
            )
        return web.json_response({"kind": "APIResourceList", "resources": items})


@asynccontextmanager
async def serve_fake_api(folder: Path) -> AsyncIterator[FakeApi]:
    api = FakeApi()
    app = web.Application(client_max_size=8 << 20)
    app.router.add_route("*", "/{path:.*}", api.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        api.url = site.name
        sockets = site._server.sockets  # type: ignore[union-attr]
        api.url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        api.kubeconfig = folder / "kubeconfig"
        api.kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "current-context": "fake",
                    "contexts": [{"name": "fake", "context": {"cluster": "fake", "namespace": OPERATOR_NAMESPACE}}],
                    "clusters": [{"name": "fake", "cluster": {"server": api.url}}],
                }
            )
        )
        yield api
    finally:
        await runner.cleanup()


def _parse(path: str) -> tuple[Resource, str, str, str] | None:
    """(resource, namespace, name, subresource) of a path to objects; empty strings for what is left out."""
    parts = path.strip("/").split("/")
    head = 2 if parts[0] == "api" else 3
    group, version = ("", parts[1:2]) if parts[0] == "api" else (parts[1] if len(parts) > 1 else "", parts[2:3])
    rest = parts[head:]
    namespace = ""
    if len(rest) >= 3 and rest[0] == "namespaces":
        namespace, rest = rest[1], rest[2:]
    resource = RESOURCES.get((group, version[0] if version else "", rest[0])) if rest else None
    if resource is None:
        return None
    return resource, namespace, rest[1] if len(rest) > 1 else "", rest[2] if len(rest) > 2 else ""


def _is_allowed(group: str, call: Call) -> bool:
    for rule in RULES:
        if (rule.group, rule.resource) != (group, call.resource) or call.verb not in rule.verbs:
            continue
        if rule.scope == "own" and call.namespace != OPERATOR_NAMESPACE:
            continue
        if rule.name is not None and rule.name != call.name:
            continue
        return True
    return False


def _check_version(body: Document, old: Document) -> None:
    version = (body.get("metadata") or {}).get("resourceVersion")
    if version is not None and version != old["metadata"]["resourceVersion"]:
        raise Refusal(409, "Conflict", "the object has been modified")


def _merged(old: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _merged(result.get(name), value)
    return result


def _labels(selector: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in selector.split(",") if part)


def _matches(watcher: Watcher, document: Document) -> bool:
    metadata = document["metadata"]
    labels = metadata.get("labels") or {}
    return watcher.namespace in ("", metadata["namespace"]) and watcher.labels.items() <= labels.items()


def _line(kind: str, document: Document) -> bytes:
    return json.dumps({"type": kind, "object": document}).encode() + b"\n"


def _status(code: int, reason: str, message: str = "") -> Document:
    return {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": message or reason}


def names(documents: Iterable[Document]) -> list[str]:
    return sorted(document["metadata"]["name"] for document in documents)
