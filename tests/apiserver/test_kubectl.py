"""What a person does with kubectl."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.apiserver.kubectl import Kubectl
from tests.apiserver.objects import configmap, pod
from tests.apiserver.widgets import GROUP, crd, widget
from tests.support.control_planes import ControlPlane

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on the PATH")


@pytest.fixture(scope="session")
def kubectl_home(tmp_path_factory: pytest.TempPathFactory, control_plane: ControlPlane) -> Path:
    """One cache of discovery per server, as on a person's machine."""
    return tmp_path_factory.mktemp(f"kubectl-{control_plane.name}")


@pytest.fixture
def kubectl(control_plane: ControlPlane, namespace: str, widgets: str, kubectl_home: Path) -> Kubectl:
    del widgets
    return Kubectl(control_plane, namespace, kubectl_home)


def rows(table: str) -> list[list[str]]:
    """The cells of a printed table, split at two or more spaces."""
    return [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()]


def test_apply_creates_configures_and_leaves_alone(kubectl: Kubectl) -> None:
    assert kubectl("apply", "-f", "-", stdin=widget("w", size=1)) == f"widget.{GROUP}/w created"
    assert kubectl("apply", "-f", "-", stdin=widget("w", size=1)) == f"widget.{GROUP}/w unchanged"
    assert kubectl("apply", "-f", "-", stdin=widget("w", size=2)) == f"widget.{GROUP}/w configured"
    assert kubectl("apply", "-f", "-", stdin=configmap("c", {"a": "1", "b": "2"})) == "configmap/c created"
    assert kubectl("apply", "-f", "-", stdin=configmap("c", {"a": "1"})) == "configmap/c configured"
    assert kubectl.json("get", "configmap", "c")["data"] == {"a": "1"}


def test_what_get_prints_can_be_applied_unchanged(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=widget("w", items=[{"name": "a"}], tags=["x"]))
    kubectl("patch", "widget", "w", "--subresource=status", "--type=merge", "-p", '{"status":{"phase":"Ready"}}')
    kubectl("apply", "-f", "-", stdin=pod("p"))
    for kind, name in (("widget", "w"), ("pod", "p")):
        before = kubectl.json("get", kind, name)
        kubectl("apply", "-f", "-", stdin=kubectl("get", kind, name, "-o", "yaml"))
        after = kubectl.json("get", kind, name)
        for part in ("spec", "status"):
            assert after[part] == before[part]
        for part in ("uid", "generation"):
            assert after["metadata"].get(part) == before["metadata"].get(part)


def test_get_prints_tables(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=widget("w", size=3, color="green"))
    header, row = rows(kubectl("get", "widgets"))
    assert header == ["NAME", "SIZE", "COLOR", "AGE"]
    assert row[:3] == ["w", "3", "green"]
    header, row = rows(kubectl("get", "wt", "-o", "wide"))
    assert header == ["NAME", "SIZE", "COLOR", "LEVEL", "AGE"]
    assert f"widget.{GROUP}/w" in kubectl("get", "battery", "-o", "name").split(), "kinds of a category"
    assert kubectl("get", "widgets", "-o", "name") == f"widget.{GROUP}/w"
    assert kubectl("get", "widget/w", "-o", "jsonpath={.spec.size}") == "3"
    assert kubectl("get", "widget.v1.battery.example.com", "w", "--no-headers").split()[:2] == ["w", "3"]
    assert rows(kubectl("get", "wt", "-o", "custom-columns=A:.metadata.name,B:.spec.size")) == [["A", "B"], ["w", "3"]]


def test_get_sorts_selects_and_labels(kubectl: Kubectl) -> None:
    for name, size in (("a", 3), ("b", 1), ("c", 2)):
        kubectl("apply", "-f", "-", stdin=widget(name, size=size))
    kubectl("label", "widget", "a", "b", "tier=front")
    assert [row[0] for row in rows(kubectl("get", "wt", "--sort-by=.spec.size"))[1:]] == ["b", "c", "a"]
    assert kubectl("get", "wt", "-l", "tier=front", "-o", "name").split() == [f"widget.{GROUP}/a", f"widget.{GROUP}/b"]
    assert kubectl("get", "wt", "--field-selector", "metadata.name=c", "-o", "name") == f"widget.{GROUP}/c"
    assert rows(kubectl("get", "wt", "-L", "tier"))[0] == ["NAME", "SIZE", "COLOR", "AGE", "TIER"]
    done = kubectl.run("get", "pods")
    assert (done.code, done.err.strip()) == (0, f"No resources found in {kubectl.namespace} namespace.")
    assert "NotFound" in kubectl.run("get", "widget", "absent").fails()
    assert kubectl.run("get", "gadgets").fails().strip() == 'error: the server doesn\'t have a resource type "gadgets"'


def test_get_watches(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=widget("w", size=1))
    with kubectl.follow("get", "widgets", "-w") as lines:
        assert lines.next().split() == ["NAME", "SIZE", "COLOR", "AGE"]
        assert lines.next().split()[:2] == ["w", "1"]
        kubectl("patch", "widget", "w", "--type=merge", "-p", '{"spec":{"size":2}}')
        assert lines.next().split()[:2] == ["w", "2"]
        kubectl("apply", "-f", "-", stdin=widget("x", size=7))
        assert lines.next().split()[:2] == ["x", "7"]


def test_describe_tells_about_fields_and_events(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=widget("w", size=4))
    text = kubectl("describe", "widget", "w")
    for label, value in (("Name", "w"), ("API Version", f"{GROUP}/v1"), ("Kind", "Widget"), ("  Size", "4")):
        assert re.search(rf"^{label}: +{value}$", text, re.MULTILINE), text
    created = kubectl.json("get", "widget", "w")
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e"},
        "involvedObject": {"apiVersion": f"{GROUP}/v1", "kind": "Widget", "name": "w", "namespace": kubectl.namespace}
        | {"uid": created["metadata"]["uid"]},
        "reason": "Turned",
        "message": "it turned",
        "type": "Normal",
        "firstTimestamp": created["metadata"]["creationTimestamp"],
        "lastTimestamp": created["metadata"]["creationTimestamp"],
        "count": 1,
        "source": {"component": "tester"},
    }
    kubectl("create", "-f", "-", stdin=event)
    assert re.search(r"Normal +Turned +\S+ +tester +it turned", kubectl("describe", "widget", "w"))
    assert rows(kubectl("get", "events"))[1][1:] == ["Normal", "Turned", "widget/w", "it turned"]

    kubectl("apply", "-f", "-", stdin=pod("p"))
    text = kubectl("describe", "pod", "p")
    for label, value in (("Status", "Pending"), ("QoS Class", "BestEffort"), ("    Image", "example.com/app:1")):
        assert re.search(rf"^{label}: +{value}$", text, re.MULTILINE), text
    assert re.search(r"Status: +Active", kubectl("describe", "namespace", kubectl.namespace))


def test_explain_knows_core_and_custom_kinds(kubectl: Kubectl) -> None:
    text = kubectl("explain", "widget.spec")
    assert "What the widget should be." in text
    assert re.search(r"size\s+<integer>.*-required-", text)
    assert "How big it is." in text
    assert re.search(r"items\s+<\[\]Object>", text)
    assert "IMAGE" in kubectl("explain", "pod.spec.containers.image").upper()
    assert re.search(r"restartPolicy\s+<string>", kubectl("explain", "pod.spec"))
    assert "does not exist" in kubectl.run("explain", "widget.spec.nothing").fails()


def test_apply_refuses_unknown_fields_and_broken_values(kubectl: Kubectl) -> None:
    error = kubectl.run("apply", "-f", "-", stdin=widget("w", unknown=1)).fails()
    assert re.search(r'unknown field "(spec\.)?unknown"', error), error
    bad = configmap("c") | {"dat": {}}
    assert 'unknown field "dat"' in kubectl.run("apply", "-f", "-", stdin=bad).fails()
    error = kubectl.run("apply", "--validate=false", "-f", "-", stdin=widget("w", size=99)).fails()
    assert "spec.size: Invalid value: 99: spec.size in body should be less than or equal to 10" in error
    assert kubectl("get", "wt,cm", "-l", "none=none", "-o", "name") == ""


@pytest.mark.parametrize(
    ("kind", "patch"),
    [
        ("merge", '{"spec":{"size":5}}'),
        ("json", '[{"op":"replace","path":"/spec/size","value":5}]'),
    ],
)
def test_patch_a_custom_object(kubectl: Kubectl, kind: str, patch: str) -> None:
    kubectl("apply", "-f", "-", stdin=widget("w"))
    assert kubectl("patch", "widget", "w", f"--type={kind}", "-p", patch) == f"widget.{GROUP}/w patched"
    assert kubectl.json("get", "widget", "w")["spec"]["size"] == 5
    assert kubectl("patch", "widget", "w", f"--type={kind}", "-p", patch) == f"widget.{GROUP}/w patched (no change)"


def test_patch_a_core_object_strategically(kubectl: Kubectl) -> None:
    containers = [{"name": name, "image": "example.com/app:1"} for name in ("a", "b")]
    kubectl("apply", "-f", "-", stdin=pod("p", containers=containers))
    kubectl("patch", "pod", "p", "-p", '{"spec":{"containers":[{"name":"b","image":"example.com/app:2"}]}}')
    kubectl("set", "image", "pod/p", "a=example.com/app:3")
    found = {item["name"]: item["image"] for item in kubectl.json("get", "pod", "p")["spec"]["containers"]}
    assert found == {"a": "example.com/app:3", "b": "example.com/app:2"}


def test_label_and_annotate(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=widget("w"))
    assert kubectl("label", "widget", "w", "a=1") == f"widget.{GROUP}/w labeled"
    assert "already has a value" in kubectl.run("label", "widget", "w", "a=2").fails()
    kubectl("label", "--overwrite", "widget", "w", "a=2")
    kubectl("annotate", "widget", "w", "note=hello")
    metadata = kubectl.json("get", "widget", "w")["metadata"]
    assert (metadata["labels"], metadata["annotations"]["note"]) == ({"a": "2"}, "hello")
    kubectl("label", "widget", "w", "a-")
    assert "labels" not in kubectl.json("get", "widget", "w")["metadata"]


def test_server_side_apply_reports_conflicts_and_can_force(kubectl: Kubectl) -> None:
    assert kubectl("apply", "--server-side", "-f", "-", stdin=widget("w", size=1)).endswith("serverside-applied")
    kubectl("patch", "widget", "w", "--type=merge", "--field-manager=other", "-p", '{"spec":{"size":2}}')
    error = kubectl.run("apply", "--server-side", "-f", "-", stdin=widget("w", size=3)).fails()
    assert 'Apply failed with 1 conflict: conflict with "other" using battery.example.com/v1: .spec.size' in error
    assert "--force-conflicts" in error
    assert kubectl.json("get", "widget", "w")["spec"]["size"] == 2
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=widget("w", size=3))
    assert kubectl.json("get", "widget", "w")["spec"]["size"] == 3


def test_client_side_apply_moves_to_server_side(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=configmap("c", {"a": "1", "b": "2"}))
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=configmap("c", {"a": "1"}))
    assert kubectl.json("get", "configmap", "c")["data"]["a"] == "1"
    shown = kubectl.json("get", "cm", "c", "--show-managed-fields")
    assert ("kubectl", "Apply") in {(item["manager"], item["operation"]) for item in shown["metadata"]["managedFields"]}


def test_diff_shows_what_would_change(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=widget("w", size=1))
    same = kubectl.run("diff", "-f", "-", stdin=widget("w", size=1))
    assert (same.code, same.out) == (0, ""), same
    changed = kubectl.run("diff", "-f", "-", stdin=widget("w", size=2))
    assert changed.code == 1
    assert "-  size: 1" in changed.out
    assert "+  size: 2" in changed.out
    fresh = kubectl.run("diff", "-f", "-", stdin=widget("new"))
    assert fresh.code == 1
    assert "+kind: Widget" in fresh.out


def test_dry_runs_store_nothing(kubectl: Kubectl) -> None:
    for where in ("server", "client"):
        out = kubectl("apply", f"--dry-run={where}", "-f", "-", stdin=widget("w"))
        assert out == f"widget.{GROUP}/w created ({where + ' dry run' if where == 'server' else 'dry run'})"
    assert "NotFound" in kubectl.run("get", "widget", "w").fails()


def test_wait_for_a_condition_a_value_and_a_deletion(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=widget("w"))
    with kubectl.follow("wait", "widget/w", "--for=jsonpath={.status.phase}=Ready", "--timeout=20s") as lines:
        kubectl("patch", "widget", "w", "--subresource=status", "--type=merge", "-p", '{"status":{"phase":"Ready"}}')
        assert lines.next() == f"widget.{GROUP}/w condition met"
    kubectl("apply", "-f", "-", stdin=pod("p"))
    conditions = '{"status":{"conditions":[{"type":"Ready","status":"True"}]}}'
    with kubectl.follow("wait", "pod/p", "--for=condition=Ready", "--timeout=20s") as lines:
        kubectl("patch", "pod", "p", "--subresource=status", "-p", conditions)
        assert lines.next() == "pod/p condition met"
    kubectl("patch", "widget", "w", "--type=merge", "-p", '{"metadata":{"finalizers":["example.com/hold"]}}')
    kubectl("delete", "widget", "w", "--wait=false")
    assert "timed out" in kubectl.run("wait", "widget/w", "--for=delete", "--timeout=1s").fails()
    kubectl("patch", "widget", "w", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    kubectl("wait", "widget/w", "--for=delete", "--timeout=20s")
    assert "NotFound" in kubectl.run("get", "widget", "w").fails()
    error = kubectl.run("wait", "pod/p", "--for=condition=Other", "--timeout=1s").fails()
    assert "timed out waiting for the condition" in error


def test_scale(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=widget("w", replicas=1))
    assert kubectl("scale", "widget/w", "--replicas=4") == f"widget.{GROUP}/w scaled"
    assert kubectl.json("get", "widget", "w")["spec"]["replicas"] == 4
    error = kubectl.run("scale", "widget/w", "--current-replicas=1", "--replicas=2").fails()
    assert "Expected replicas to be 1, was 4" in error


def test_api_resources_and_versions(kubectl: Kubectl) -> None:
    listed = {row[0]: row[1:] for row in rows(kubectl("api-resources", "--no-headers", "-o", "wide"))}
    assert listed["widgets"][:4] == ["wt", f"{GROUP}/v1", "true", "Widget"]
    assert listed["pods"][:4] == ["po", "v1", "true", "Pod"]
    assert listed["deployments"][:4] == ["deploy", "apps/v1", "true", "Deployment"]
    assert {"v1", "apps/v1", f"{GROUP}/v1"} <= set(kubectl("api-versions").split())
    in_group = kubectl("api-resources", f"--api-group={GROUP}", "-o", "name").split()
    assert f"widgets.{GROUP}" in in_group


def test_create_generates_common_objects(kubectl: Kubectl, tmp_path: Path) -> None:
    (tmp_path / "settings.ini").write_text("x=1\n")
    kubectl("create", "configmap", "c", f"--from-file={tmp_path}/settings.ini", "--from-literal=k=v")
    assert kubectl.json("get", "cm", "c")["data"] == {"settings.ini": "x=1\n", "k": "v"}
    assert kubectl("create", "secret", "generic", "s", "--from-literal=k=v") == "secret/s created"
    assert kubectl.json("get", "secret", "s")["data"] == {"k": "dg=="}
    assert "already exists" in kubectl.run("create", "secret", "generic", "s").fails()
    assert kubectl("create", "serviceaccount", "a") == "serviceaccount/a created"
    kubectl("create", "role", "r", "--verb=get,list", "--resource=pods")
    kubectl("create", "rolebinding", "b", "--role=r", f"--serviceaccount={kubectl.namespace}:a")
    assert kubectl.json("get", "rolebinding", "b")["roleRef"]["name"] == "r"
    assert (
        kubectl("create", "deployment", "d", "--image=example.com/app:1", "--replicas=0") == "deployment.apps/d created"
    )
    assert rows(kubectl("get", "deploy", "d"))[0] == ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]
    assert kubectl("create", "service", "clusterip", "v", "--tcp=80:8080") == "service/v created"


def test_replace_overwrites_unless_stale(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=configmap("c", {"a": "1"}))
    assert kubectl("replace", "-f", "-", stdin=configmap("c", {"b": "2"})) == "configmap/c replaced"
    assert kubectl.json("get", "cm", "c")["data"] == {"b": "2"}
    stale = yaml.safe_load(kubectl("get", "cm", "c", "-o", "yaml"))
    kubectl("patch", "cm", "c", "-p", '{"data":{"c":"3"}}')
    assert "the object has been modified" in kubectl.run("replace", "-f", "-", stdin=stale).fails()


def test_delete_by_name_file_label_and_all(kubectl: Kubectl, tmp_path: Path) -> None:
    manifest = tmp_path / "all.yaml"
    manifest.write_text(yaml.safe_dump_all([configmap("a"), widget("w"), widget("x"), widget("z")]))
    kubectl("apply", "-f", str(manifest))
    kubectl("label", "widget", "x", "doomed=yes")
    assert kubectl("delete", "widget", "w") == f'widget.{GROUP} "w" deleted'
    assert kubectl("delete", "widgets", "-l", "doomed=yes") == f'widget.{GROUP} "x" deleted'
    assert "NotFound" in kubectl.run("delete", "widget", "w").fails()
    kubectl("delete", "-f", str(manifest), "--ignore-not-found")
    kubectl("apply", "-f", str(manifest))
    kubectl("delete", "widgets", "--all")
    assert kubectl("get", "widgets", "-o", "name") == ""


@pytest.mark.parametrize("cascade", ["background", "foreground", "orphan"])
def test_delete_cascades(kubectl: Kubectl, cascade: str) -> None:
    kubectl("create", "-f", "-", stdin=configmap("owner"))
    owner = kubectl.json("get", "cm", "owner")
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    child = configmap("child", ownerReferences=[reference | {"blockOwnerDeletion": True}])
    kubectl("create", "-f", "-", stdin=child)
    assert kubectl("delete", "cm", "owner", f"--cascade={cascade}") == 'configmap "owner" deleted'
    if cascade == "orphan":
        assert "ownerReferences" not in kubectl.json("get", "cm", "child")["metadata"]
    elif cascade == "foreground":
        assert "NotFound" in kubectl.run("get", "cm", "child").fails()
    else:
        kubectl("wait", "cm/child", "--for=delete", "--timeout=15s")


def test_deleting_a_held_object_waits(kubectl: Kubectl) -> None:
    held = widget("w")
    held["metadata"]["finalizers"] = ["example.com/hold"]
    kubectl("create", "-f", "-", stdin=held)
    with kubectl.follow("delete", "widget", "w") as lines:
        assert lines.next() == f'widget.{GROUP} "w" deleted'
        assert kubectl.json("get", "widget", "w")["metadata"]["deletionTimestamp"]
        kubectl("patch", "widget", "w", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
        assert lines.process.wait(15) == 0


def test_raw_version_and_permissions(kubectl: Kubectl) -> None:
    assert kubectl("get", "--raw", "/readyz") == "ok"
    assert json.loads(kubectl("get", "--raw", f"/apis/{GROUP}/v1"))["kind"] == "APIResourceList"
    assert re.search(r"Server Version: v1\.\d+", kubectl("version"))
    assert kubectl("auth", "can-i", "create", "pods") == "yes"
    assert "is running at" in kubectl("cluster-info")


def test_a_custom_resource_definition_comes_and_goes(kubectl: Kubectl) -> None:
    definition = crd("Brief", "briefs", {"type": "object"}, {"type": "object"})
    name = f"customresourcedefinition.apiextensions.k8s.io/briefs.{GROUP}"
    assert kubectl("apply", "-f", "-", stdin=definition) == f"{name} created"
    assert kubectl("wait", "--for=condition=Established", name, "--timeout=20s") == f"{name} condition met"
    assert kubectl("apply", "-f", "-", stdin=definition) == f"{name} unchanged"
    printed = kubectl("get", "crd", f"briefs.{GROUP}", "-o", "yaml")
    kubectl("apply", "-f", "-", stdin=printed)
    brief = {"apiVersion": f"{GROUP}/v1", "kind": "Brief", "metadata": {"name": "b"}}
    kubectl("apply", "-f", "-", stdin=brief)
    kubectl("delete", "crd", f"briefs.{GROUP}")
    assert kubectl.run("get", "briefs").code != 0


def test_a_namespace_comes_and_goes(kubectl: Kubectl) -> None:
    name = f"{kubectl.namespace}-x"
    assert kubectl("create", "namespace", name) == f"namespace/{name} created"
    assert kubectl("delete", "namespace", name) == f'namespace "{name}" deleted'
    assert "NotFound" in kubectl.run("get", "namespace", name).fails()
