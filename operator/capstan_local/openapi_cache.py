"""OpenAPI documents as bytes, made when first asked for and again when the CRDs change."""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from capstan_local import crd_registry, openapi
from capstan_local.codec import dumps
from capstan_local.errors import not_acceptable, path_not_found
from capstan_local.representation import parse_accept
from capstan_local.resources import Catalog
from capstan_local.storage import Store

_PREFIX = "/openapi/v3"


@dataclass(frozen=True, slots=True)
class Document:
    """A serialised document."""

    body: bytes
    etag: str


class OpenApiDocuments:
    """/openapi/v2, /openapi/v3 and the documents below it. They are made in a thread: they are large."""

    def __init__(self, catalog: Catalog, store: Store) -> None:
        self._catalog = catalog
        self._store = store
        self._generation = -1
        self._documents: dict[str, Document] = {}
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
        """Raises ApiError 404, and 406 when only protobuf is accepted."""
        path = path.rstrip("/")
        if accept and not any(
            wanted.media_type in ("application/json", "*/*", "application/*") for wanted in parse_accept(accept)
        ):
            raise not_acceptable()
        if self._generation != self._catalog.generation:
            self._documents.clear()
            self._generation = self._catalog.generation
        found = self._documents.get(path)
        if found is None:
            generation = self._generation
            body = await asyncio.to_thread(_serialise, self._maker(path))
            found = Document(body, f'"{hashlib.sha256(body).hexdigest()[:32].upper()}"')
            if generation == self._generation:
                self._documents[path] = found
        return found

    def _maker(self, path: str) -> Callable[[], Any]:
        crds = [entry.load() for entry in self._store.scan(crd_registry.CRDS)]
        builtin = self._builtin
        if path == "/openapi/v2":
            return lambda: openapi.v2_document(builtin, crds)
        if path == _PREFIX:
            return lambda: openapi.v3_index(builtin, crds)
        group_version = path.removeprefix(_PREFIX).removeprefix("/apis/").removeprefix("/api/")
        group, _, version = group_version.rpartition("/")
        if not path.startswith(_PREFIX) or not self._catalog.in_version(group, version):
            raise path_not_found()
        return lambda: openapi.v3_document(group_version, builtin, crds)


def _serialise(make: Callable[[], Any]) -> bytes:
    return dumps(make())
