"""CustomResourceDefinitions: their life, validation, pruning, defaults, status, scale and CEL."""

import pytest

from tests.apiserver.client import MERGE, Api, eventually, names, stable
from tests.apiserver.widgets import GROUP, crd, gauge, install, widget

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def causes(body: dict) -> set[tuple[str, str]]:
    """Field and reason of each cause.

    Older servers put a dot before `status`, leave out the index of an item that lacks a field, and have no reason of
    its own for a wrong type; none of that is compared.
    """
    fields = {(cause["field"].lstrip("."), cause["reason"]) for cause in body["details"]["causes"]}
    return {
        (field.replace("items[0].name", "items.name"), reason.replace("TypeInvalid", "Invalid"))
        for field, reason in fields
    }


async def test_a_definition_is_accepted_and_its_kind_served(api: Api, widgets: str) -> None:
    definition = (await api.get(f"{DEFINITIONS}/widgets.{GROUP}")).expect(200)
    conditions = {item["type"]: (item["status"], item["reason"]) for item in definition["status"]["conditions"]}
    assert conditions["NamesAccepted"] == ("True", "NoConflicts")
    assert conditions["Established"] == ("True", "InitialNamesAccepted")
    assert definition["status"]["acceptedNames"] == definition["spec"]["names"]
    assert definition["status"]["storedVersions"] == ["v1"]
    assert definition["spec"]["names"]["listKind"] == "WidgetList"
    assert definition["spec"]["conversion"] == {"strategy": "None"}
    assert (await api.get(widgets)).expect(200)["kind"] == "WidgetList"


async def test_deleting_a_definition_deletes_its_objects(api: Api, namespace: str) -> None:
    await install(api, crd("Fleeting", "fleetings", {"type": "object"}, {"type": "object"}))
    path = f"/apis/{GROUP}/v1/namespaces/{namespace}/fleetings"
    body = {"apiVersion": f"{GROUP}/v1", "kind": "Fleeting", "metadata": {"name": "f"}}
    (await api.post(path, body)).expect(201)
    (await api.delete(f"{DEFINITIONS}/fleetings.{GROUP}")).expect(200)

    async def is_unserved() -> bool:
        return (await api.get(path)).status == 404

    await eventually(is_unserved, "the kind is no longer served")

    async def is_gone() -> bool:
        return (await api.get(f"{DEFINITIONS}/fleetings.{GROUP}")).status == 404

    await eventually(is_gone, "the definition is gone")
    await install(api, crd("Fleeting", "fleetings", {"type": "object"}, {"type": "object"}))
    assert names((await api.get(path)).expect(200)) == []


async def test_a_definition_must_be_named_after_its_kind(api: Api) -> None:
    definition = crd("Odd", "odds", {"type": "object"}, {"type": "object"})
    definition["metadata"]["name"] = "something.else"
    body = (await api.post(DEFINITIONS, definition)).expect(422)
    assert ("metadata.name", "FieldValueInvalid") in causes(body)
    assert f'must be spec.names.plural+"."+spec.group' in body["message"]  # noqa: F541


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (
            {"properties": {"a": {"type": "string"}}},
            ".type: Required value: must not be empty for specified object fields",
        ),
        ({"type": "object", "properties": {"a": {}}}, "properties[a].type: Required value"),
        (
            {"type": "object", "properties": {"a": {"type": "string", "default": 5}}},
            "properties[a].default: Invalid value",
        ),
        (
            {"type": "object", "properties": {"a": {"type": "array"}}},
            "properties[a].items: Required value: must be specified",
        ),
        ({"type": "thing"}, '.type: Unsupported value: "thing"'),
    ],
)
async def test_a_schema_must_be_structural(api: Api, spec: dict, complaint: str) -> None:
    body = (await api.post(DEFINITIONS, crd("Loose", "looses", spec, {"type": "object"}))).expect(422)
    assert body["reason"] == "Invalid"
    assert complaint in body["message"], body["message"]


async def test_a_second_kind_with_the_same_names_is_not_accepted(api: Api, widgets: str) -> None:
    del widgets
    rival = crd("Rival", "rivals", {"type": "object"}, {"type": "object"})
    rival["spec"]["names"]["shortNames"] = ["wt"]
    (await api.post(DEFINITIONS, rival)).expect(201)

    async def refusal() -> str | None:
        definition = (await api.get(f"{DEFINITIONS}/rivals.{GROUP}")).expect(200)
        found = {item["type"]: item for item in definition.get("status", {}).get("conditions") or []}
        return found["NamesAccepted"]["reason"] if "NamesAccepted" in found else None

    assert await eventually(refusal, "the names were judged") == "ShortNamesConflict"
    (await api.delete(f"{DEFINITIONS}/rivals.{GROUP}")).expect(200)


async def test_defaults_are_filled_in(api: Api, widgets: str) -> None:
    created = (await api.post(widgets, widget("w", items=[{"name": "a"}]))).expect(201)
    assert stable(created) == widget(
        "w", color="red", replicas=1, nested={"level": 3}, items=[{"name": "a", "weight": 1}]
    )


async def test_a_null_takes_the_default_unless_it_is_allowed(api: Api, widgets: str) -> None:
    created = (await api.post(widgets, widget("w", color=None, ratio=None))).expect(201)
    assert created["spec"]["color"] == "red"
    assert created["spec"]["ratio"] is None


async def test_a_removed_field_is_defaulted_again(api: Api, widgets: str) -> None:
    (await api.post(widgets, widget("w", color="green"))).expect(201)
    patched = (await api.patch(f"{widgets}/w", {"spec": {"color": None}}, MERGE)).expect(200)
    assert patched["spec"]["color"] == "red"


async def test_unknown_fields_are_pruned(api: Api, widgets: str) -> None:
    body = widget("w", unknown=1, nested={"level": 1, "extra": True}, free={"any": {"thing": 1}})
    created = (await api.post(widgets, body | {"other": {"x": 1}})).expect(201)
    assert created["spec"]["nested"] == {"level": 1}
    assert created["spec"]["free"] == {"any": {"thing": 1}}
    assert "unknown" not in created["spec"]
    assert "other" not in created


@pytest.mark.current_kubernetes_only("fieldValidation")
async def test_strict_field_validation_refuses_unknown_fields(api: Api, widgets: str, configmaps: str) -> None:
    body = (await api.post(widgets, widget("w", unknown=1), fieldValidation="Strict")).expect(400)
    assert body["reason"] == "BadRequest"
    assert body["message"].endswith('strict decoding error: unknown field "spec.unknown"')
    bad = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "dat": {}}
    body = (await api.post(configmaps, bad, fieldValidation="Strict")).expect(400)
    assert 'strict decoding error: unknown field "dat"' in body["message"]
    answer = await api.post(widgets, widget("w", unknown=1), fieldValidation="Warn")
    answer.expect(201)
    assert answer.headers["Warning"] == '299 - "unknown field \\"spec.unknown\\""'


@pytest.mark.parametrize(
    ("spec", "field", "reason", "message"),
    [
        ({"size": "5"}, "spec.size", "FieldValueInvalid", 'spec.size in body must be of type integer: "string"'),
        ({"size": 11}, "spec.size", "FieldValueInvalid", "spec.size in body should be less than or equal to 10"),
        ({"size": 0}, "spec.size", "FieldValueInvalid", "spec.size in body should be greater than or equal to 1"),
        ({"size": 1.5}, "spec.size", "FieldValueInvalid", 'spec.size in body must be of type integer: "number"'),
        ({"title": "UP"}, "spec.title", "FieldValueInvalid", "spec.title in body should match '^[a-z]+$'"),
        ({"color": "blue"}, "spec.color", "FieldValueNotSupported", 'supported values: "red", "green"'),
        ({"size": None}, "spec.size", "FieldValueRequired", "Required value"),
        ({"items": [{"value": "x"}]}, "spec.items.name", "FieldValueRequired", "Required value"),
        ({"items": {"a": 1}}, "spec.items", "FieldValueInvalid", 'must be of type array: "object"'),
        ({"tags": ["a", "a"]}, "spec.tags[1]", "FieldValueDuplicate", 'Duplicate value: "a"'),
        ({"items": [{"name": "a"}, {"name": "a"}]}, "spec.items[1]", "FieldValueDuplicate", "Duplicate value"),
        ({"nested": {"on": "yes"}}, "spec.nested.on", "FieldValueInvalid", 'must be of type boolean: "string"'),
        ({"started": "noon"}, "spec.started", "FieldValueInvalid", "spec.started in body must be of type date-time"),
    ],
)
async def test_a_broken_object_is_refused_naming_the_field(
    api: Api, widgets: str, spec: dict, field: str, reason: str, message: str
) -> None:
    body = (await api.post(widgets, widget("bad", **spec))).expect(422)
    assert body["reason"] == "Invalid"
    assert body["message"].startswith(f'Widget.{GROUP} "bad" is invalid: ')
    assert body["details"]["kind"] == "Widget"
    assert body["details"]["group"] == GROUP
    assert body["details"]["name"] == "bad"
    assert (field, reason) in causes(body)
    assert message in body["message"]


async def test_the_words_of_a_refusal(api: Api, widgets: str) -> None:
    body = (await api.post(widgets, widget("bad", size="big"))).expect(422)
    assert body["message"] == (
        f'Widget.{GROUP} "bad" is invalid: spec.size: Invalid value: "string": '
        'spec.size in body must be of type integer: "string"'
    )
    body = (await api.post(widgets, widget("bad", size=11))).expect(422)
    assert body["message"] == (
        f'Widget.{GROUP} "bad" is invalid: spec.size: Invalid value: 11: '
        "spec.size in body should be less than or equal to 10"
    )


async def test_every_broken_field_is_named_at_once(api: Api, widgets: str) -> None:
    body = (await api.post(widgets, widget("bad", size=99, color="blue", title="UP"))).expect(422)
    assert {field for field, _ in causes(body)} == {"spec.size", "spec.color", "spec.title"}
    assert body["message"].startswith(f'Widget.{GROUP} "bad" is invalid: [spec.')


async def test_an_update_is_validated_like_a_create(api: Api, widgets: str) -> None:
    created = (await api.post(widgets, widget("w"))).expect(201)
    created["spec"]["size"] = 99
    body = (await api.put(f"{widgets}/w", created)).expect(422)
    assert causes(body) == {("spec.size", "FieldValueInvalid")}
    status = {"status": {"replicas": "many"}}
    body = (await api.patch(f"{widgets}/w/status", status)).expect(422)
    assert causes(body) == {("status.replicas", "FieldValueInvalid")}


async def test_the_body_must_say_which_kind_it_is(api: Api, widgets: str) -> None:
    body = (await api.post(widgets, {"metadata": {"name": "w"}, "spec": {"size": 1}})).expect(400)
    assert "Object 'Kind' is missing" in body["message"]
    wrong = widget("w") | {"kind": "Gadget"}
    body = (await api.post(widgets, wrong)).expect(422)
    assert body["message"] == f'Gadget.{GROUP} "w" is invalid: kind: Invalid value: "Gadget": must be Widget'
    wrong = widget("w") | {"apiVersion": f"{GROUP}/v9"}
    body = (await api.post(widgets, wrong)).expect(400)
    assert body["message"] == (
        f"the API version in the data ({GROUP}/v9) does not match the expected API version ({GROUP}/v1)"
    )


async def test_int_or_string_takes_both_and_nothing_else(api: Api, gauges: str) -> None:
    for name, port in (("number", 80), ("word", "http")):
        created = (await api.post(gauges, gauge(name, low=1, high=2, port=port))).expect(201)
        assert created["spec"]["port"] == port
    body = (await api.post(gauges, gauge("bad", low=1, high=2, port=True))).expect(422)
    assert ("spec.port", "FieldValueInvalid") in causes(body)


async def test_the_scale_subresource(api: Api, widgets: str) -> None:
    created = (await api.post(widgets, widget("w", replicas=2))).expect(201)
    status = {"status": {"replicas": 1, "selector": "app=w"}}
    (await api.patch(f"{widgets}/w/status", status)).expect(200)
    scale = (await api.get(f"{widgets}/w/scale")).expect(200)
    assert (scale["kind"], scale["apiVersion"]) == ("Scale", "autoscaling/v1")
    assert (scale["spec"], scale["status"]) == ({"replicas": 2}, {"replicas": 1, "selector": "app=w"})
    assert scale["metadata"]["uid"] == created["metadata"]["uid"]

    scaled = (await api.patch(f"{widgets}/w/scale", {"spec": {"replicas": 5}})).expect(200)
    assert scaled["spec"] == {"replicas": 5}
    scale["spec"]["replicas"] = 7
    assert (await api.put(f"{widgets}/w/scale", scale)).expect(409)["reason"] == "Conflict"
    scale["metadata"]["resourceVersion"] = scaled["metadata"]["resourceVersion"]
    (await api.put(f"{widgets}/w/scale", scale)).expect(200)
    stored = (await api.get(f"{widgets}/w")).expect(200)
    assert (stored["spec"]["replicas"], stored["metadata"]["generation"]) == (7, 3)


async def test_a_kind_without_a_subresource_has_no_such_path(api: Api, gauges: str) -> None:
    (await api.post(gauges, gauge("g", low=1, high=2))).expect(201)
    (await api.get(f"{gauges}/g/scale")).expect(404)


async def test_a_definition_can_serve_two_versions(api: Api, namespace: str) -> None:
    definition = crd("Twin", "twins", {"type": "object", "properties": {"n": {"type": "integer"}}}, {"type": "object"})
    older = definition["spec"]["versions"][0] | {"name": "v1beta1", "storage": False, "deprecated": True}
    definition["spec"]["versions"].append(older)
    await install(api, definition)
    body = {"apiVersion": f"{GROUP}/v1beta1", "kind": "Twin", "metadata": {"name": "t"}, "spec": {"n": 1}}
    made = await api.post(f"/apis/{GROUP}/v1beta1/namespaces/{namespace}/twins", body)
    assert made.expect(201)["apiVersion"] == f"{GROUP}/v1beta1"
    assert made.headers["Warning"] == f'299 - "{GROUP}/v1beta1 Twin is deprecated; use {GROUP}/v1 Twin"'
    newer = (await api.get(f"/apis/{GROUP}/v1/namespaces/{namespace}/twins/t")).expect(200)
    assert (newer["apiVersion"], newer["spec"]) == (f"{GROUP}/v1", {"n": 1})


async def test_a_cluster_scoped_kind_has_no_namespace(api: Api) -> None:
    definition = crd("Planet", "planets", {"type": "object"}, {"type": "object"})
    definition["spec"]["scope"] = "Cluster"
    await install(api, definition)
    body = {"apiVersion": f"{GROUP}/v1", "kind": "Planet", "metadata": {"name": "earth"}}
    created = (await api.post(f"/apis/{GROUP}/v1/planets", body)).expect(201)
    assert "namespace" not in created["metadata"]
    (await api.get(f"/apis/{GROUP}/v1/namespaces/default/planets")).expect(404)


async def test_a_changed_definition_takes_effect(api: Api, namespace: str) -> None:
    definition = crd("Change", "changes", {"type": "object", "properties": {}}, {"type": "object"})
    await install(api, definition)
    path = f"/apis/{GROUP}/v1/namespaces/{namespace}/changes"
    body = {"apiVersion": f"{GROUP}/v1", "kind": "Change", "metadata": {"name": "c"}, "spec": {"late": 1}}
    assert (await api.post(path, body)).expect(201).get("spec") == {}
    stored = (await api.get(f"{DEFINITIONS}/changes.{GROUP}")).expect(200)
    schema = stored["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"] = {"late": {"type": "integer"}}
    (await api.put(f"{DEFINITIONS}/changes.{GROUP}", stored)).expect(200)

    async def is_in_effect() -> bool:
        return (await api.put(f"{path}/c", await fresh())).expect(200)["spec"] == {"late": 1}

    async def fresh() -> dict:
        return (await api.get(f"{path}/c")).expect(200) | {"spec": {"late": 1}}

    await eventually(is_in_effect, "the new field is kept")


CEL = pytest.mark.current_kubernetes_only("CEL rules")


@CEL
async def test_a_cel_rule_refuses_with_its_message(api: Api, gauges: str) -> None:
    body = (await api.post(gauges, gauge("g", low=3, high=2))).expect(422)
    assert body["message"].startswith(f'Gauge.{GROUP} "g" is invalid: spec.low: Invalid value: ')
    assert body["message"].endswith(": low must not exceed high")
    assert causes(body) == {("spec.low", "FieldValueInvalid")}
    (await api.post(gauges, gauge("g", low=2, high=2))).expect(201)


@CEL
async def test_a_cel_message_may_be_computed(api: Api, gauges: str) -> None:
    body = (await api.post(gauges, gauge("g", low=1, high=2, names=["g-a", "b"]))).expect(422)
    assert "names must start with g-, not b" in body["message"]


@CEL
async def test_a_cel_rule_over_the_old_value_makes_a_field_immutable(api: Api, gauges: str) -> None:
    (await api.post(gauges, gauge("g", low=1, high=2, unit="m"))).expect(201)
    body = (await api.patch(f"{gauges}/g", {"spec": {"unit": "km"}})).expect(422)
    assert causes(body) == {("spec.unit", "FieldValueInvalid")}
    assert "unit is immutable" in body["message"]
    (await api.patch(f"{gauges}/g", {"spec": {"high": 9}})).expect(200)


@CEL
async def test_a_cel_rule_that_cannot_be_compiled_is_refused(api: Api) -> None:
    spec = {"type": "object", "properties": {"a": {"type": "integer"}}}
    spec["x-kubernetes-validations"] = [{"rule": "self.b > 1"}]
    body = (await api.post(DEFINITIONS, crd("Wrong", "wrongs", spec, {"type": "object"}))).expect(422)
    assert "x-kubernetes-validations[0].rule" in body["message"]
