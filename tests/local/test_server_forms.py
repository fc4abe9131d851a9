"""The pure parts of the server: names, selectors, quantities, protobuf bodies, discovery, tokens."""

from __future__ import annotations

import pytest

from capstan_local.server import discovery, openapi_binary, protobuf
from capstan_local.server.errors import ApiError
from capstan_local.server.event_versions import core_event_to_v1, v1_event_to_core
from capstan_local.server.identity import Authenticator, User
from capstan_local.server.metadata import name_problems, qualified_name_problems
from capstan_local.server.quantity_form import canonical
from capstan_local.server.representation import Representation, negotiate
from capstan_local.server.requests import parse_path, write_options
from capstan_local.server.resources import BUILTIN, Catalog, version_priority
from capstan_local.server.selectors import Selection, parse_label_selector, selectable_values

KINDS = {resource.kind_key: resource for resource in BUILTIN}
POD = KINDS["v1/Pod"]


# ---- names


@pytest.mark.parametrize(
    ("kind_key", "name", "is_good"),
    [
        ("v1/Pod", "a.b-c", True),
        ("v1/Pod", "A", False),
        ("v1/Pod", "a" * 253, True),
        ("v1/Pod", "a" * 254, False),
        ("v1/Namespace", "a.b", False),
        ("v1/Namespace", "a" * 64, False),
        ("v1/Service", "1a", False),
        ("v1/Service", "a1", True),
        ("rbac.authorization.k8s.io/v1/ClusterRole", "system:Node", True),
        ("rbac.authorization.k8s.io/v1/ClusterRole", "a/b", False),
    ],
)
def test_each_kind_has_its_rule_for_names(kind_key: str, name: str, is_good: bool) -> None:
    assert (name_problems(KINDS[kind_key], name) == []) is is_good


def test_label_keys_name_the_part_that_is_wrong() -> None:
    assert qualified_name_problems("example.com/x") == []
    assert qualified_name_problems("/x") == ["prefix part must be non-empty"]
    assert qualified_name_problems("example.com/")[0] == "name part must be non-empty"
    assert qualified_name_problems("x" * 64) == ["name part must be no more than 63 characters"]


# ---- selectors


@pytest.mark.parametrize(
    ("text", "labels", "is_selected"),
    [
        ("", {}, True),
        ("a=1", {"a": "1"}, True),
        ("a==1,b!=2", {"a": "1"}, True),
        ("a in (1,2), b notin (3)", {"a": "2", "b": "4"}, True),
        ("a in (1,2)", {"a": "3"}, False),
        ("a in (,x)", {"a": ""}, True),
        ("a", {"a": ""}, True),
        ("!a", {"a": ""}, False),
        ("a>1", {"a": "2"}, True),
        ("a<1", {"a": "x"}, False),
    ],
)
def test_label_selectors(text: str, labels: dict[str, str], is_selected: bool) -> None:
    predicate = parse_label_selector(text)
    assert (predicate is None or predicate(labels)) is is_selected


@pytest.mark.parametrize("text", ["a in 1", "=1", "a=b=c", "a b"])
def test_a_broken_label_selector_is_refused(text: str) -> None:
    with pytest.raises(ApiError, match="unable to parse requirement"):
        parse_label_selector(text)


def test_field_selectors_see_the_defaults_of_absent_fields() -> None:
    bare = selectable_values(POD, {"spec": {}})
    assert bare["spec.nodeName"] == ""
    assert bare["spec.hostNetwork"] == "false"
    values = selectable_values(POD, {"spec": {"nodeName": "n", "hostNetwork": True}, "status": {"phase": "Running"}})
    chosen = Selection(POD, "", "", "spec.nodeName=n,status.phase!=Failed,metadata.name!=other")
    assert chosen.matches("ns", "p", {}, values)
    assert not chosen.matches("ns", "other", {}, values)
    assert not chosen.matches("ns", "p", {}, bare)


def test_a_field_nobody_can_select_by_is_refused() -> None:
    with pytest.raises(ApiError, match=r"field label not supported: spec\.image"):
        Selection(POD, "", "", "spec.image=x")


# ---- quantities


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("0.5", "500m"),
        ("1000m", "1"),
        ("1500m", "1500m"),
        ("1024Ki", "1Mi"),
        ("1.5Gi", "1536Mi"),
        ("1000", "1k"),
        ("1e3", "1e3"),
        (2, "2"),
        ("0", "0"),
        ("not one", "not one"),
    ],
)
def test_quantities_are_stored_in_canonical_form(written: object, stored: str) -> None:
    assert canonical(written) == stored


# ---- protobuf


def block(number: int, content: bytes | str) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    assert len(data) < 128
    return bytes([number << 3 | 2, len(data)]) + data


def envelope(api_version: str, kind: str, raw: bytes) -> bytes:
    return b"k8s\x00" + block(1, block(1, api_version) + block(2, kind)) + block(2, raw)


def test_a_protobuf_body_becomes_the_object_go_would_print() -> None:
    metadata = block(1, "s") + block(3, "") + block(8, b"") + block(11, block(1, "k") + block(2, "v"))
    data = block(2, block(1, "key") + block(2, b"\x00\xff"))
    immutable = bytes([5 << 3 | 0, 0])  # a pointer to false: written, and kept
    unknown = bytes([15 << 3 | 0, 1])
    body = envelope("v1", "Secret", block(1, metadata) + data + block(3, "Opaque") + immutable + unknown)
    assert protobuf.decode(body) == {
        "kind": "Secret",
        "apiVersion": "v1",
        "metadata": {"name": "s", "labels": {"k": "v"}},
        "data": {"key": "AP8="},
        "type": "Opaque",
        "immutable": False,
    }


def test_protobuf_inlines_and_special_types() -> None:
    empty_dir = block(2, block(2, block(1, "1Gi")))  # VolumeSource.emptyDir.sizeLimit
    volume = block(1, block(1, "v") + block(2, empty_dir))
    pod = protobuf.decode(envelope("v1", "Pod", block(2, volume)))
    assert pod["spec"] == {"volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}]}
    by_name = block(1, "a") + bytes([3 << 3, 80]) + block(4, bytes([1 << 3, 1]) + block(3, "web"))
    by_number = block(1, "b") + bytes([3 << 3, 81]) + block(4, bytes([2 << 3, 90]))
    service = protobuf.decode(envelope("v1", "Service", block(2, block(1, by_name) + block(1, by_number))))
    assert service["spec"]["ports"] == [
        {"name": "a", "port": 80, "targetPort": "web"},
        {"name": "b", "port": 81, "targetPort": 90},
    ]


def test_a_negative_number_and_a_time_survive_protobuf() -> None:
    renewed = block(4, bytes([1 << 3, 0x80, 0x01, 2 << 3, 0xC0, 0x84, 0x3D]))  # 128 s, 1,000,000 ns
    minus_one = bytes([2 << 3]) + b"\xff" * 9 + b"\x01"
    lease = protobuf.decode(envelope("coordination.k8s.io/v1", "Lease", block(2, minus_one + renewed)))
    assert lease["spec"] == {"leaseDurationSeconds": -1, "renewTime": "1970-01-01T00:02:08.001000Z"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"no magic", 400),
        (b"k8s\x00\x0a\xff", 400),
        (envelope("v1", "Secret", b"\x0a\x7f"), 400),
        (envelope("v1", "Secret", b"\x0b"), 400),
        (envelope("example.com/v1", "Widget", b""), 415),
    ],
)
def test_a_broken_or_unknown_protobuf_body_is_refused(body: bytes, code: int) -> None:
    with pytest.raises(ApiError) as caught:
        protobuf.decode(body)
    assert caught.value.code == code


def test_openapi_in_binary_form_nests_names_and_values() -> None:
    document = {
        "swagger": "2.0",
        "info": {"title": "t", "version": "v"},
        "definitions": {"D": {"type": "object", "x-k": [1], "properties": {"p": {"$ref": "#/d"}}}},
    }
    properties = block(25, block(1, block(1, "p") + block(2, block(1, "#/d"))))
    properties = bytes([25 << 3 & 0x7F | 2 | 0x80, 25 >> 4]) + properties[1:]
    kind = bytes([22 << 3 & 0x7F | 2 | 0x80, 22 >> 4]) + block(22 & 0xF, block(1, "object"))[1:]
    extension = block(1, "x-k") + block(2, block(2, "[1]"))
    extension = bytes([31 << 3 & 0x7F | 2 | 0x80, 31 >> 4, len(extension)]) + extension
    schema = kind + properties + extension
    definitions = block(9, block(1, block(1, "D") + block(2, schema)))
    expected = block(1, "2.0") + block(2, block(1, "t") + block(2, "v")) + block(8, b"") + definitions
    assert openapi_binary.encode(document) == expected


# ---- requests


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        ("GET", "/api/v1/pods", ("pods", "list", "", "", "")),
        ("GET", "/api/v1/namespaces/n/pods/p", ("pods", "get", "n", "p", "")),
        ("PATCH", "/api/v1/namespaces/n/pods/p/status", ("pods", "patch", "n", "p", "status")),
        ("GET", "/api/v1/namespaces/n", ("namespaces", "get", "", "n", "")),
        ("PUT", "/api/v1/namespaces/n/finalize", ("namespaces", "update", "", "n", "finalize")),
        ("POST", "/apis/apps/v1/namespaces/n/deployments", ("deployments", "create", "n", "", "")),
        ("DELETE", "/apis/batch/v1/namespaces/n/jobs", ("jobs", "deletecollection", "n", "", "")),
        ("GET", "/api/v1/watch/namespaces/n/pods", ("pods", "watch", "n", "", "")),
        ("POST", "/api/v1/namespaces/n/pods/p/exec", ("pods", "connect", "n", "p", "exec")),
    ],
)
def test_paths(method: str, path: str, found: tuple[str, ...]) -> None:
    asked = parse_path(Catalog(), method, path, {})
    assert (asked.resource.plural, asked.verb, asked.namespace, asked.name, asked.subresource) == found


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/api/v1/gadgets", 404),
        ("GET", "/api/v1/namespaces/n/nodes/x", 404),
        ("GET", "/api/v1/pods/p", 404),
        ("GET", "/api/v1/namespaces/n/configmaps/c/status", 404),
        ("POST", "/api/v1/pods", 405),
        ("PUT", "/api/v1/namespaces/n/pods", 405),
        ("DELETE", "/api/v1/namespaces", 405),
        ("GET", "/apis/authorization.k8s.io/v1/subjectaccessreviews", 405),
    ],
)
def test_what_is_not_served_is_404_and_what_cannot_be_done_is_405(method: str, path: str, code: int) -> None:
    with pytest.raises(ApiError) as caught:
        parse_path(Catalog(), method, path, {})
    assert caught.value.code == code


def test_a_write_without_a_manager_is_named_after_its_client() -> None:
    assert write_options({}, "kubectl/v1.32.4 (linux/amd64)").manager == "kubectl"
    assert write_options({"fieldManager": "me"}, "kubectl/v1").manager == "me"
    with pytest.raises(ApiError, match='dryRun: Unsupported value: "Some": supported values: "All"'):
        write_options({"dryRun": "Some"}, "")
    with pytest.raises(ApiError, match="force: Forbidden: may not be specified for non-apply patch"):
        write_options({"force": "true"}, "", verb="Patch")


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", Representation()),
        ("application/vnd.kubernetes.protobuf,application/json", Representation()),
        ("application/yaml", Representation(yaml=True)),
        ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Representation("table")),
        ("application/json;as=Table;v=v9;g=meta.k8s.io,application/json", Representation()),
        ("text/html, */*;q=0.1", Representation()),
        ("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", Representation("metadata")),
    ],
)
def test_the_form_of_an_answer_is_negotiated(accept: str, form: Representation) -> None:
    assert negotiate(accept) == form


def test_protobuf_alone_is_not_acceptable() -> None:
    with pytest.raises(ApiError) as caught:
        negotiate("application/vnd.kubernetes.protobuf")
    assert caught.value.code == 406


# ---- discovery


def test_versions_are_ordered_by_maturity() -> None:
    versions = ["v1alpha1", "v2", "v1beta2", "v10", "v1", "v1beta1", "foo"]
    ordered = ["v10", "v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "foo"]
    assert sorted(versions, key=version_priority, reverse=True) == ordered


def test_both_forms_of_discovery_name_the_same_resources() -> None:
    catalog = Catalog()
    aggregated = discovery.aggregated(catalog, "v2", core=False)["items"]
    for group in aggregated:
        for version in group["versions"]:
            legacy = discovery.resource_list(catalog, group["metadata"]["name"], version["version"])
            assert legacy is not None
            names = {entry["name"] for entry in legacy["resources"]}
            expected = {item["resource"] for item in version["resources"]} | {
                f"{item['resource']}/{part['subresource']}"
                for item in version["resources"]
                for part in item.get("subresources", ())
            }
            assert names == expected


def test_events_are_the_same_in_both_versions() -> None:
    core = {"apiVersion": "v1", "kind": "Event", "message": "m", "involvedObject": {"name": "p"}, "count": 2}
    newer = core_event_to_v1(core)
    assert newer == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "note": "m",
        "regarding": {"name": "p"},
        "deprecatedCount": 2,
    }
    assert v1_event_to_core(newer) == core


# ---- tokens


def test_tokens_of_service_accounts_are_believed_until_they_expire() -> None:
    authenticator = Authenticator("admin-secret")
    groups = ("system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated")
    token = authenticator.issue("ns", "robot", "uid-1", ["aud"], 600)
    assert authenticator.user_of(token) == User("system:serviceaccount:ns:robot", groups, "uid-1")
    assert authenticator.user_of(authenticator.issue("ns", "robot", "uid-1", ["aud"], -1)) is None
    head, claims, signature = token.split(".")
    assert authenticator.user_of(f"{head}.{claims[:-2]}AA.{signature}") is None
    assert Authenticator("other").user_of(token) is None
    assert authenticator.user_of("") is None
    assert authenticator.user_of("admin-secretx") is None
    admin = authenticator.user_of("admin-secret")
    assert admin is not None
    assert admin.groups == ("system:masters", "system:authenticated")
