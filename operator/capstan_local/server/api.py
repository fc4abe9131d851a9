"""The API without HTTP framing: one parsed request in, one answer out."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from capstan_local.schema import patches
from capstan_local.server import requests, reviews, subresources
from capstan_local.server.codec import dumps
from capstan_local.server.collection import Entry
from capstan_local.server.decoding import Strictness, parse_body, parse_yaml, require_decodable
from capstan_local.server.deletion import DeleteOptions, Deleter, parse_options
from capstan_local.server.errors import (
    ApiError,
    bad_request,
    invalid,
    invalid_value,
    method_not_allowed,
    not_implemented,
    unsupported_media_type,
)
from capstan_local.server.identity import Authenticator, User
from capstan_local.server.kubelet_proxy import KubeletProxy
from capstan_local.server.listing import Reader, list_options
from capstan_local.server.representation import Representation, list_in_form, negotiate, object_body
from capstan_local.server.requests import ResourceRequest
from capstan_local.server.resources import Catalog, Resource
from capstan_local.server.storage import Store
from capstan_local.server.watch import Watch, watch_options
from capstan_local.server.writes import Transform, WriteOptions, Writer, Written

Object = dict[str, Any]

_PATCHES = (requests.JSON_PATCH, requests.MERGE_PATCH, requests.STRATEGIC_PATCH, requests.APPLY)
_DELETED_AT_ONCE = 64  # so many share a commit
_POSTED = dict(
    zip(
        ("binding", "eviction", "token"),
        ("v1/Binding", "policy/v1/Eviction", "authentication.k8s.io/v1/TokenRequest"),
        strict=True,
    )
)
"""What is posted to subresources, by their names."""
_CUSTOM_PATCHES = (requests.JSON_PATCH, requests.MERGE_PATCH, requests.APPLY)


@dataclass(slots=True)
class Answer:
    """What the client gets."""

    code: int
    body: bytes
    content_type: str = "application/json"
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Call:
    """One request on its way through a verb."""

    asked: ResourceRequest
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes
    form: Representation
    user: User

    @property
    def content_type(self) -> str:
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    def write_options(self, verb: str) -> WriteOptions:
        agent = self.headers.get("User-Agent", "")
        return requests.write_options(self.query, agent, content_type=self.content_type, verb=verb)


class Api:
    """Every verb of every resource."""

    def __init__(
        self, store: Store, catalog: Catalog, writer: Writer, authenticator: Authenticator, kubelet_token: str
    ) -> None:
        self.store = store
        self.catalog = catalog
        self.kubelets = KubeletProxy(store, kubelet_token)
        self._authenticator = authenticator
        self._reader = Reader(store)
        self._writer = writer
        self._deleter = Deleter(store, catalog)

    def is_current(self, resource: Resource) -> bool:
        """False once the CRD behind `resource` has changed or gone."""
        now = self.catalog.find(resource.group, resource.version, resource.plural)
        return now is resource or (now is not None and now.custom is not None and now.custom is resource.custom)

    def open_watch(self, asked: ResourceRequest, query: dict[str, str], accept: str) -> Watch:
        """A registered watch, to be closed by the caller. Raises ApiError (410: too old)."""
        if asked.name:
            pinned = f"metadata.name={asked.name}"
            query = {**query, "fieldSelector": ",".join(filter(None, (query.get("fieldSelector"), pinned)))}
        options = watch_options(asked.resource, asked.namespace, query)
        watch = Watch(self.store, asked.resource, options, negotiate(accept, query.get("includeObject", "")))
        watch.open()
        return watch

    async def connect(self, request: web.BaseRequest, asked: ResourceRequest) -> web.StreamResponse:
        """exec and attach. Raises ApiError 501 for port forwarding."""
        if asked.subresource not in ("exec", "attach"):
            raise not_implemented(asked.subresource)
        return await self.kubelets.stream(request, asked.subresource, asked.namespace, asked.name)

    async def answer(
        self, asked: ResourceRequest, query: dict[str, str], headers: Mapping[str, str], body: bytes, user: User
    ) -> Answer:
        """The answer to any request but a watch or a stream. Raises ApiError."""
        form = negotiate(headers.get("Accept", ""), query.get("includeObject", ""))
        answer = await self._perform(_Call(asked, query, headers, body, form, user))
        if asked.resource.deprecation:
            answer.warnings = [asked.resource.deprecation, *answer.warnings]
        return answer

    async def _perform(self, call: _Call) -> Answer:
        asked, query, form = call.asked, call.query, call.form
        match asked.verb:
            case "get":
                return self._get(call)
            case "list":
                options = list_options(asked.resource, asked.namespace, query)
                return Answer(200, self._reader.collection(asked.resource, options, form), form.content_type)
            case "create":
                return await (self._create_part(call) if asked.subresource else self._create(call))
            case "update":
                return await self._update(call)
            case "patch":
                return await self._patch(call)
            case "delete":
                return await self._delete(call)
            case "deletecollection":
                return await self._delete_collection(call)
        raise method_not_allowed()

    def _get(self, call: _Call) -> Answer:
        asked = call.asked
        if asked.subresource == "scale":
            plain = self._reader.get(asked.resource, asked.namespace, asked.name, Representation())
            return Answer(200, dumps(subresources.scale_of(asked.resource, orjson.loads(plain))))
        if asked.subresource not in ("", "status", "ephemeralcontainers"):
            raise method_not_allowed()
        rv = call.query.get("resourceVersion", "")
        body = self._reader.get(asked.resource, asked.namespace, asked.name, call.form, rv)
        return Answer(200, body, call.form.content_type)

    async def _create(self, call: _Call) -> Answer:
        asked, resource = call.asked, call.asked.resource
        options = call.write_options("Create")
        obj = parse_body(call.content_type, call.body, options.strictness)
        if resource.group in ("authentication.k8s.io", "authorization.k8s.io"):
            require_decodable(resource.kind_key, obj)
            token = (obj.get("spec") or {}).get("token") if resource.kind == "TokenReview" else None
            reviewed = reviews.review(resource.kind, obj, call.user, self._authenticator.user_of(token or ""))
            return Answer(201, dumps(reviewed))
        if resource.kind_key == "v1/Binding":
            require_decodable(resource.kind_key, obj)
            name = (obj.get("metadata") or {}).get("name") or ""
            return Answer(201, await self._bind(asked.namespace, name, obj, options))
        return self._written(call, await self._writer.create(resource, asked.namespace, obj, options), options)

    async def _create_part(self, call: _Call) -> Answer:
        """POST to a subresource."""
        asked = call.asked
        if asked.subresource not in _POSTED:
            raise method_not_allowed()
        options = call.write_options("Create")
        obj = parse_body(call.content_type, call.body, options.strictness)
        require_decodable(_POSTED[asked.subresource], obj)
        if asked.subresource == "binding":
            return Answer(201, await self._bind(asked.namespace, asked.name, obj, options))
        if asked.subresource == "eviction":
            subresources.check_eviction(obj, asked.name)
            args = (asked.resource, asked.namespace, asked.name, obj, call.query)
            return Answer(201, await subresources.evict(self.store, self._deleter, *args))
        request = subresources.issue_token(self.store, self._authenticator, asked.namespace, asked.name, obj)
        return Answer(201, dumps(request))

    async def _bind(self, namespace: str, name: str, binding: Object, options: WriteOptions) -> bytes:
        pods = self.catalog.stored()["pods"]
        return await subresources.bind(self._writer, pods, namespace, name, binding, options)

    async def _update(self, call: _Call) -> Answer:
        asked = call.asked
        options = call.write_options("Update")
        obj = parse_body(call.content_type, call.body, options.strictness)
        if asked.subresource == "scale":
            return await self._rescale(call, lambda _: obj, options)
        if asked.subresource not in ("", "status", "finalize", "ephemeralcontainers"):
            raise method_not_allowed()
        where = (asked.resource, asked.namespace, asked.name, asked.subresource)
        return self._written(call, await self._writer.replace(*where, obj, options), options)

    async def _patch(self, call: _Call) -> Answer:
        asked = call.asked
        accepted = _CUSTOM_PATCHES if asked.resource.custom else _PATCHES
        if call.content_type not in accepted:
            raise unsupported_media_type(call.content_type, accepted)
        options = call.write_options("Patch")
        where = (asked.resource, asked.namespace, asked.name, asked.subresource)
        if call.content_type == requests.APPLY:
            applied = parse_yaml(call.body)
            if not isinstance(applied, dict):
                raise bad_request("the body of an apply must be an object")
            if asked.subresource == "scale":
                return await self._rescale(call, lambda scale: patches.apply_merge_patch(scale, applied), options)
            return self._written(call, await self._writer.apply(*where, applied, options), options)
        transform = _patcher(call)
        if asked.subresource == "scale":
            return await self._rescale(call, transform, options)
        if asked.subresource not in ("", "status", "ephemeralcontainers"):
            raise method_not_allowed()
        return self._written(call, await self._writer.patch(*where, transform, options), options)

    async def _rescale(self, call: _Call, change: Transform, options: WriteOptions) -> Answer:
        asked = call.asked
        transform = subresources.with_scale(asked.resource, change)
        written = await self._writer.mutate(asked.resource, asked.namespace, asked.name, "scale", transform, options)
        return Answer(200, dumps(subresources.scale_of(asked.resource, orjson.loads(written.body))))

    def _delete_options(self, call: _Call) -> DeleteOptions:
        body = parse_body(call.content_type, call.body, Strictness()) if call.body.strip() else {}
        require_decodable("v1/DeleteOptions", body)
        return parse_options(body, call.query)

    async def _delete(self, call: _Call) -> Answer:
        asked = call.asked
        if asked.subresource:
            raise method_not_allowed()
        options = self._delete_options(call)
        body = await self._deleter.delete(asked.resource, asked.namespace, asked.name, options)
        return Answer(200, body)

    async def _delete_collection(self, call: _Call) -> Answer:
        """Delete everything that is selected; answers with what was deleted."""
        asked, resource = call.asked, call.asked.resource
        options = self._delete_options(call)
        selection = list_options(resource, asked.namespace, call.query).selection
        deleted = self._reader.select(resource, selection)

        async def delete(entry: Entry) -> None:
            try:
                await self._deleter.delete(resource, entry.namespace, entry.name, options)
            except ApiError as error:
                if error.code != 404:  # gone already, which is what was asked for
                    raise

        for at in range(0, len(deleted), _DELETED_AT_ONCE):
            await asyncio.gather(*(delete(entry) for entry in deleted[at : at + _DELETED_AT_ONCE]))
        return Answer(200, list_in_form(resource, deleted, Representation(), self.store.rv, "", None))

    def _written(self, call: _Call, written: Written, options: WriteOptions) -> Answer:
        body = object_body(call.asked.resource, written.body, call.form)
        return Answer(written.code, body, call.form.content_type, options.strictness.warnings)


def _patcher(call: _Call) -> Transform:
    """The change that a JSON, merge or strategic merge patch makes. Raises ApiError 400 for a malformed one."""
    resource, content_type = call.asked.resource, call.content_type
    try:
        patch = orjson.loads(call.body)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"the patch is not valid JSON: {error}") from None
    kind_key = "autoscaling/v1/Scale" if call.asked.subresource == "scale" else resource.kind_key

    def transform(obj: Object) -> Object:
        try:
            if content_type == requests.JSON_PATCH:
                return patches.apply_json_patch(obj, patch)
            if content_type == requests.MERGE_PATCH:
                return patches.apply_merge_patch(obj, patch)
            return patches.apply_strategic_merge_patch(obj, patch, kind_key)
        except patches.PatchError as error:
            if error.code == 422:
                causes = [invalid_value("patch", "", error.message)]
                raise invalid(resource.kind, resource.group, call.asked.name, causes) from None
            raise ApiError(error.code, error.message) from None

    return transform
