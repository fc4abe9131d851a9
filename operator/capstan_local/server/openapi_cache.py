"""OpenAPI documents as bytes, made when first asked for and again when the CRDs change."""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from capstan_local.schema import openapi
from capstan_local.server import crd_registry, openapi_binary
from capstan_local.server.codec import dumps
from capstan_local.server.errors import not_acceptable, path_not_found
from capstan_local.server.representation import MediaRange, parse_accept
from capstan_local.server.resources import Catalog
from capstan_local.server.storage import Store

_V2 = "/openapi/v2"
_PREFIX = "/openapi/v3"
_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Document:
    """A serialised document."""

    body: bytes
    etag: str
    content_type: str = "application/json"


class OpenApiDocuments:
    """/openapi/v2, /openapi/v3 and the documents below it. They are made in a thread: they are large."""

    def __init__(self, catalog: Catalog, store: Store) -> None:
        self._catalog = catalog
        self._store = store
        self._generation = -1
        self._documents: dict[tuple[str, str], Document] = {}
        self._builtin = [
            openapi.BuiltinResource(
                group=resource.group,
                version=resource.version,
                kind=resource.kind,
                plural=resource.plural,
                namespaced=resource.namespaced,
                subresources=resource.subresources,
                verbs=resource.verbs,
            )
            for resource in catalog
            if not resource.custom
        ]

    async def find(self, path: str, accept: str) -> Document:
        """Raises ApiError 404 for what is not served and 406 for a form there is not."""
        path = path.rstrip("/")
        content_type = _negotiate(path, accept)
        if self._generation != self._catalog.generation:
            self._documents.clear()
            self._generation = self._catalog.generation
        found = self._documents.get((path, content_type))
        if found is None:
            generation = self._generation
            serialise = dumps if content_type == _JSON else openapi_binary.encode
            body = await asyncio.to_thread(_serialised, self._maker(path), serialise)
            found = Document(body, f'"{hashlib.sha256(body).hexdigest()[:32].upper()}"', content_type)
            if generation == self._generation:
                self._documents[path, content_type] = found
        return found

    def _maker(self, path: str) -> Callable[[], Any]:
        crds = [entry.load() for entry in self._store.scan(crd_registry.CRDS)]
        builtin = self._builtin
        if path == _V2:
            return lambda: openapi.v2_document(builtin, crds)
        if path == _PREFIX:
            return lambda: openapi.v3_index(builtin, crds)
        group_version = path.removeprefix(_PREFIX).removeprefix("/apis/").removeprefix("/api/")
        group, _, version = group_version.rpartition("/")
        if not path.startswith(_PREFIX) or not self._catalog.in_version(group, version):
            raise path_not_found()
        return lambda: openapi.v3_document(group_version, builtin, crds)


def _serialised(make: Callable[[], Any], serialise: Callable[[Any], bytes]) -> bytes:
    return serialise(make())


def _negotiate(path: str, accept: str) -> str:
    """The form of a document: JSON, and for v2 the binary one too. Raises ApiError 406."""
    for wanted in parse_accept(accept) if accept else [MediaRange(_JSON, {})]:
        if wanted.media_type in (_JSON, "*/*", "application/*"):
            return _JSON
        if path == _V2 and wanted.media_type in openapi_binary.MEDIA_TYPES:
            return openapi_binary.MEDIA_TYPE
    raise not_acceptable()
