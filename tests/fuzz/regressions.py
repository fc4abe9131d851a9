"""By target: data that was a finding once."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import h5py


def _deep(text: str) -> bytes:
    return text.replace("@", "[" * 1500 + "]" * 1500).encode()


def _request(method: str, path: str, kind: str, body: Any, **query: str) -> bytes:
    return json.dumps({"method": method, "path": path, "type": kind, "query": query, "body": body}).encode()


def _archive_of(name: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr(name, b"")
    return held.getvalue()


def _hdf5_without_names() -> bytes:
    held = io.BytesIO()
    with h5py.File(held, "w") as file:
        file["inputs"] = file["labels"] = [1, 2]
    return held.getvalue().replace(b"SNOD", b"SNOE")


_REVIEWS = "/apis/authentication.k8s.io/v1"
_APPLIED = {"apiVersion": "fuzz.example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"items": [3]}}
_BINDING = {"apiVersion": "v1", "kind": "Binding", "target": 0.5}

REGRESSIONS: Mapping[str, Sequence[bytes]] = {
    "spec-Benchmark": (b'{"workload": {"collectives": {"largest": "\\n1"}}}', b'{"a\\nb": 1}'),
    "watch-event": (
        b'{"type": "ADDED", "object": {"metadata": {"name": "\xff"}}}',
        _deep('{"type": "ADDED", "object": {"metadata": {"name": "x"}, "spec": @}}'),
    ),
    "api-error": (b"\0\n\0", b'{"message": "\xff"}', b'{"message": "a\\nb"}', _deep('{"x": @}')),
    "kubeconfig": (b"$", b"\x80", b'{"current-context": "c", "contexts": [[1]]}', b"a: !!int ''", _deep("@")),
    "npz": (b"", _archive_of("a\nb.npy")),
    "hdf5": (_hdf5_without_names(),),
    "zarr": (b'{"zarr_format": 3, "node_type": "array", "chunk_key_encoding": {"name": true}}',),
    "api-yaml": (b"a: !!int ''", _deep("a: @")),
    "api-writes": (
        _request("POST", f"{_REVIEWS}/tokenreviews", "application/json", {"spec": "x"}),
        _request("POST", f"{_REVIEWS}/tokenreviews", "application/json", {"spec": {"token": {}}}),
        _request("POST", "/api/v1/namespaces/default/serviceaccounts/default/token", "application/json",
                 {"spec": {"expirationSeconds": 1 << 60}}),
        _request("POST", "/api/v1/namespaces/default/pods/p/binding", "application/json", _BINDING),
        _request("POST", "/api/v1/namespaces/default/pods", "application/json",
                 {"metadata": {"name": "n"}, "spec": {"containers": [None], "volumes": [None]}}),
    ),
    "api-patches": (
        _request("PATCH", "/apis/fuzz.example.com/v1/namespaces/default/widgets/w", "application/apply-patch+yaml",
                 _APPLIED, fieldManager="m"),
    ),
    "quantity": (b".", b"1..2", b"1.2.3", b"1e999999999"),
    "completions": (b'{"model": "digits", "prompt": "\xff"}',),
    "client-kubeconfig": (b"$", b"a\n b: c\nd", b"\x80", b'{"contexts": [[1]]}'),
}  # fmt: skip
