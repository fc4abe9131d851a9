"""GET of one object and of a collection: paging, consistent continuation, resource versions."""

import base64
import binascii
from dataclasses import dataclass

import orjson

from capstan_local.server.codec import render
from capstan_local.server.collection import Entry, Gone, Key
from capstan_local.server.errors import (
    ApiError,
    Cause,
    bad_request,
    forbidden_value,
    gone,
    invalid,
    not_found,
    not_supported,
)
from capstan_local.server.representation import Representation, list_in_form, object_body
from capstan_local.server.resources import Resource
from capstan_local.server.selectors import Selection
from capstan_local.server.storage import Store

_LIST_EXPIRED = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without"
    " the continue parameter."
)


@dataclass(frozen=True, slots=True)
class ListOptions:
    """The query of a list, parsed."""

    selection: Selection
    limit: int = 0
    continue_token: str = ""
    rv: str = ""
    rv_match: str = ""


def parse_rv(text: str) -> int:
    """Raises ApiError 400."""
    try:
        rv = int(text)
    except ValueError:
        rv = -1
    if rv < 0:
        why = f'Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax'
        raise ApiError(400, why)
    return rv


def list_options(resource: Resource, namespace: str, query: dict[str, str]) -> ListOptions:
    """Raises ApiError 400 or 422."""
    selection = Selection(resource, namespace, query.get("labelSelector", ""), query.get("fieldSelector", ""))
    try:
        limit = int(query.get("limit") or 0)
    except ValueError:
        raise bad_request(f'limit: Invalid value: "{query["limit"]}": must be an integer') from None
    options = ListOptions(
        selection=selection,
        limit=max(limit, 0),
        continue_token=query.get("continue", ""),
        rv=query.get("resourceVersion", ""),
        rv_match=query.get("resourceVersionMatch", ""),
    )
    if options.rv_match:
        _check_match(options)
    return options


def _check_match(options: ListOptions) -> None:
    causes: list[Cause] = []
    if options.continue_token:
        causes.append(
            forbidden_value("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided")
        )
    elif not options.rv:
        causes.append(
            forbidden_value(
                "resourceVersionMatch", "resourceVersionMatch is forbidden unless resourceVersion is provided"
            )
        )
    if options.rv_match not in ("Exact", "NotOlderThan"):
        causes.append(not_supported("resourceVersionMatch", options.rv_match, ("Exact", "NotOlderThan", "")))
    elif options.rv_match == "Exact" and options.rv == "0":
        why = 'resourceVersionMatch "exact" is forbidden for resourceVersion "0"'
        causes.append(forbidden_value("resourceVersionMatch", why))
    if causes:
        raise invalid("ListOptions", "meta.k8s.io", "", causes)


class Reader:
    """Reads from `store`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, resource: Resource, namespace: str, name: str, form: Representation, rv: str = "") -> bytes:
        """Raises ApiError 404."""
        self._check_not_future(rv)
        entry = self._store.get(resource.storage_key, namespace if resource.namespaced else "", name)
        if entry is None:
            raise not_found(resource.plural, resource.group, name)
        return object_body(resource, render(resource, entry), form)

    def collection(self, resource: Resource, options: ListOptions, form: Representation) -> bytes:
        """Raises ApiError 410 when the continuation or the exact resource version is too old."""
        entries, rv, token, remaining = self._page(resource, options)
        return list_in_form(resource, entries, form, rv, token, remaining)

    def select(self, resource: Resource, selection: Selection) -> list[Entry]:
        """All matching entries now, in key order."""
        return [
            entry for entry in self._store.scan(resource.storage_key, selection.namespace) if _matches(selection, entry)
        ]

    def _page(self, resource: Resource, options: ListOptions) -> tuple[list[Entry], int, str, int | None]:
        self._check_not_future(options.rv)
        start: Key | None = None
        rv = self._store.rv
        if options.continue_token:
            rv, start = _decode_token(options.continue_token)
        elif options.rv_match == "Exact" or (options.limit and options.rv not in ("", "0") and not options.rv_match):
            rv = parse_rv(options.rv)
        found = self._at(resource, options.selection, rv, bool(options.continue_token))
        if start is not None:
            found = [entry for entry in found if entry.key > start]
        if not options.limit or len(found) <= options.limit:
            return found, rv, "", None
        page = found[: options.limit]
        # With selectors kube-apiserver does not know how many of the rest would match, and says nothing.
        remaining = len(found) - len(page) if not options.selection.is_filtered else None
        return page, rv, _encode_token(rv, page[-1].key), remaining

    def _at(self, resource: Resource, selection: Selection, rv: int, continued: bool) -> list[Entry]:
        if rv == self._store.rv:
            return self.select(resource, selection)
        try:
            then = self._store.scan_at(resource.storage_key, rv)
        except Gone as error:
            raise gone(
                _LIST_EXPIRED if continued else f"The resourceVersion for the provided list is too old. {error}"
            ) from None
        return [then[key] for key in sorted(then) if _matches(selection, then[key])]

    def _check_not_future(self, rv: str) -> None:
        if rv and parse_rv(rv) > self._store.rv:
            cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
            message = f"Too large resource version: {rv}, current: {self._store.rv}"
            raise ApiError(
                504, message, details={"causes": [cause], "retryAfterSeconds": 1}, headers={"Retry-After": "1"}
            )


def _matches(selection: Selection, entry: Entry) -> bool:
    return selection.matches(entry.namespace, entry.name, entry.labels, entry.fields)


def _encode_token(rv: int, key: Key) -> str:
    return base64.urlsafe_b64encode(orjson.dumps({"v": "meta.k8s.io/v1", "rv": rv, "start": key})).decode().rstrip("=")


def _decode_token(token: str) -> tuple[int, Key]:
    try:
        decoded = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        namespace, name = decoded["start"]
        return int(decoded["rv"]), (str(namespace), str(name))
    except (binascii.Error, orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        raise bad_request("continue key is not valid: it was not made by this server") from None
