"""From the released chart to this one and back, with the objects of a cluster in use: nothing is lost."""

from __future__ import annotations

import copy
import functools
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from capstan_operator.api.replicas import CEL_WORKERS_PER_REPLICA
from capstan_operator.api.training_job import Run
from capstan_runtime.contract.base import rules_of
from tests.apiserver.client import Api, eventually
from tests.charts.releases import CHART, CRDS, KINDS, create, install, objects, versions
from tests.charts.stored import PLURALS, Json, examples, in_every_phase
from tests.support.control_planes import ControlPlane
from tests.support.crd_compatibility import narrowed
from tests.support.helm import Helm, needs_helm

RELEASE = Path("tests/releases/capstan-0.1.0.tgz")
"""As it was released; made by `helm package`."""
OWN = "/apis/capstan.dev/v1alpha1/namespaces/default"
ALLOWED = {
    "new rule !(!has(self.norm)) || self.channels.all(c, c % (has(self.groups) ? self.groups : 8) == 0)": (
        "the operator always refused such a model: what is stored is Invalid already, and has no status to come"
    ),
    "new rule !self.path.contains('://') || self.path.matches('^(s3|gs|az)://[^/]+(/.*)?$')": (
        "no pod has a folder of such a name, and there was no other reading of it: what is stored has failed"
    ),
    "self.framework.deepspeed.zeroStage == 0 && self.training.precision == 'fp16'))": ("there was no such precision"),
    "self.framework.deepspeed.zeroStage == 0 && self.training.precision == 'fp16')": ("there was no such precision"),
    'configMap.name: pattern null became "^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"': (
        "no ConfigMap has another name; what has a slash in it could reach one of another namespace"
    ),
    'uri.run: pattern "^[^/]+/[^/]+/[^/]+$" became "^[A-Za-z0-9][^/]*/[A-Za-z0-9][^/]*/[A-Za-z0-9][^/]*$"': (
        "namespaces, names and uids begin like that; what begins with a dot could leave the run's place in the store"
    ),
    **{
        f"new rule {rule}": "says what it did before, where nothing of parallelism is said, and nothing stored says it"
        for rule, _ in rules_of(Run)
        if CEL_WORKERS_PER_REPLICA in rule and not rule.startswith("!")
    },
}
"""What the definitions may take back of those released, by the end of the line, and why that loses nothing."""


def released(plural: str) -> Json:
    with tarfile.open(RELEASE) as archive:
        file = archive.extractfile(f"capstan/files/crds/{plural}.yaml")
        assert file is not None
        crd: Json = yaml.load(file.read(), yaml.CSafeLoader)
    return crd


@functools.cache
def current(plural: str) -> Json:
    crd: Json = yaml.load(Path(f"crds/{plural}.yaml").read_text(), yaml.CSafeLoader)
    return crd


def test_the_definitions_allow_all_that_the_released_ones_did() -> None:
    lines = [f"{plural}{line}" for plural in PLURALS.values() for line in narrowed(released(plural), current(plural))]
    assert [line for line in lines if not line.endswith(tuple(ALLOWED))] == []
    assert [rule for rule in ALLOWED if not any(line.endswith(rule) for line in lines)] == [], "is not needed any more"


def _new_defaults(old: Json, new: Json, path: str) -> list[str]:
    """Fields with a default that an object has got since: what the API server fills in, whoever reads it."""
    before, now = old.get("properties", {}), new.get("properties", {})
    found = [f"{path}.{name}" for name, field in now.items() if name not in before and "default" in field]
    for name in before.keys() & now.keys():
        found += _new_defaults(before[name], now[name], f"{path}.{name}")
    return found + (_new_defaults(old["items"], new["items"], f"{path}[]") if "items" in old and "items" in new else [])


@pytest.mark.parametrize("plural", PLURALS.values())
def test_an_operator_of_the_released_version_finds_no_field_in_jobs_that_nobody_wrote(plural: str) -> None:
    old, new = (crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for crd in (released(plural), current(plural)))
    assert _new_defaults(old["properties"]["spec"], new["properties"]["spec"], "spec") == []


def _is_of_the_release(manifest: Json) -> bool:
    """Whether the released version knows what the example asks for: it had no code of the user's own."""
    return "program" not in manifest["spec"] and "custom" not in manifest["spec"].get("model", {})


@needs_helm
async def test_an_upgrade_and_the_way_back_lose_nothing(api: Api, plane: ControlPlane, helm: Helm) -> None:
    install(helm, RELEASE)
    for manifest in [*filter(_is_of_the_release, examples()), *in_every_phase()]:
        path = f"{OWN}/{PLURALS[manifest['kind']]}"
        made = await create(api, path, manifest)
        if "status" in manifest:
            status = f"{path}/{made['metadata']['name']}/status"
            (await api.put(status, made | {"status": manifest["status"]})).expect(200)
    before = await _stored(api)
    assert len(before) > 40

    await _upgrade(api, helm, CHART)
    assert _missing(before, await _stored(api)) == []
    for name, item in before.items():
        # Written once more as they are: what the new definitions refuse could never again be given a status.
        for path in (f"{OWN}/{name}", *([f"{OWN}/{name}/status"] if "status" in item else [])):
            (await api.put(path, (await api.get(f"{OWN}/{name}")).expect(200))).expect(200)
    assert _missing(before, await _stored(api)) == []

    made = versions(await objects(api, plane))
    definitions = [(await api.get(f"{CRDS}/{name}")).expect(200)["metadata"]["generation"] for name in KINDS]
    await _upgrade(api, helm, CHART)
    assert versions(await objects(api, plane)) == made
    assert [(await api.get(f"{CRDS}/{name}")).expect(200)["metadata"]["generation"] for name in KINDS] == definitions

    await _upgrade(api, helm, RELEASE)
    assert _missing(before, await _stored(api)) == []
    helm("Uninstall", release_name="capstan", wait=False)
    assert await objects(api, plane) == {}
    assert _missing(before, await _stored(api)) == []


async def _upgrade(api: Api, helm: Helm, chart: Path) -> None:
    """Returns when the definitions are those of the chart, and served. The way back is an upgrade to the older chart,
    which sends what `helm rollback` would: the library's own lacks a wait strategy and always fails."""
    helm("Upgrade", release_name="capstan", chart_path=str(chart), wait=False, reset_values=True)
    for plural in PLURALS.values():
        wanted = (released if chart == RELEASE else current)(plural)["spec"]["versions"][0]["schema"]
        there = (await api.get(f"{CRDS}/{plural}.capstan.dev")).expect(200)
        assert _fields(there["spec"]["versions"][0]["schema"]["openAPIV3Schema"]) == _fields(wanted["openAPIV3Schema"])

        async def is_served(path: str = f"{OWN}/{plural}") -> bool:
            return (await api.get(path)).status == 200

        await eventually(is_served, f"{plural} are served")


def _fields(schema: Json, path: str = "") -> set[str]:
    """Names of all fields. Old servers do not keep the rest of a schema as it was sent."""
    found = {f"{path}.{name}" for name in schema.get("properties", {})}
    for name, inner in schema.get("properties", {}).items():
        found |= _fields(inner, f"{path}.{name}")
    for inner in (schema.get("items"), schema.get("additionalProperties")):
        found |= _fields(inner, f"{path}[]") if isinstance(inner, dict) else set()
    return found


async def _stored(api: Api) -> dict[str, Json]:
    """All objects of ours, by `plural/name`."""
    return {
        f"{plural}/{item['metadata']['name']}": item
        for plural in PLURALS.values()
        for item in (await api.get(f"{OWN}/{plural}")).expect(200)["items"]
    }


def _missing(before: dict[str, Json], after: dict[str, Json]) -> list[str]:
    """What was in `before` and is not, or not so, in `after`. Defaults of new fields may have come."""
    kept = ("spec", "status", "uid")
    return [
        line
        for name, item in before.items()
        for part in kept
        for line in _lost(
            {**item, "uid": item["metadata"]["uid"]}.get(part),
            {**after[name], "uid": after[name]["metadata"]["uid"]}.get(part) if name in after else None,
            f"{name} {part}",
        )
    ]


def _lost(before: Any, after: Any, path: str) -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        return [line for key, value in before.items() for line in _lost(value, after.get(key), f"{path}.{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [line for place, value in enumerate(before) for line in _lost(value, after[place], f"{path}[{place}]")]
    return [] if before == after else [f"{path}: {before!r} became {after!r}"]


def _root(crd: Json) -> Json:
    schema: Json = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema["properties"]["spec"]["properties"]


def _edit(change: Callable[[Json], Any]) -> Json:
    crd = copy.deepcopy(current("trainingjobs"))
    change(crd)
    return crd


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda crd: _root(crd).pop("workers"), ".spec.workers: is gone"),
        (lambda crd: crd["spec"]["versions"][0].update(served=False), "v1alpha1: is not served any more"),
        (
            lambda crd: crd["spec"]["versions"][0].update(subresources={}),
            "v1alpha1: has no subresource status any more",
        ),
        (
            lambda crd: _root(crd)["suspend"].update(type="string"),
            '.spec.suspend: type "boolean" became "string"',
        ),
        (
            lambda crd: _root(crd)["training"]["properties"]["globalBatchSize"].update(maximum=5),
            ".spec.training.globalBatchSize: maximum None became 5",
        ),
        (
            lambda crd: _root(crd)["workers"]["properties"]["image"].update(pattern="^x"),
            '.spec.workers.image: pattern null became "^x"',
        ),
        (
            lambda crd: _root(crd)["workers"]["properties"]["image"].update(enum=["x"]),
            ".spec.workers.image: may not be anything else any more",
        ),
        (lambda crd: _root(crd)["workers"].update(required=["image"]), ".spec.workers.image: is required now"),
        (
            lambda crd: _root(crd)["workers"].update({"x-kubernetes-validations": [{"rule": "has(self.image)"}]}),
            ".spec.workers: new rule has(self.image)",
        ),
        (
            lambda crd: _root(crd)["chaos"].update(
                {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["fault"]}
            ),
            ".spec.chaos: elements have to differ now",
        ),
    ],
)
def test_what_a_definition_takes_back_is_noticed(change: Callable[[Json], Any], line: str) -> None:
    assert narrowed(current("trainingjobs"), _edit(change)) == [line]
