"""Who owns which field. The expectations are what a kube-apiserver answers to the same requests."""

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from capstan_local.schema import field_sets, managed_fields, type_schema
from capstan_local.schema.managed_fields import ApplyConflict, record_update, server_side_apply

Object = dict[str, Any]

SCHEMA = type_schema.from_crd(
    {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer"},
                    "o": {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}},
                    "map": {"type": "object", "additionalProperties": {"type": "string"}},
                    "atomic": {
                        "type": "object",
                        "x-kubernetes-map-type": "atomic",
                        "additionalProperties": {"type": "string"},
                    },
                    "list": {"type": "array", "items": {"type": "integer"}},
                    "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                    "keyed": {
                        "type": "array",
                        "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["k", "j"],
                        "items": {
                            "type": "object",
                            "required": ["k"],
                            "properties": {
                                "k": {"type": "string"},
                                "j": {"type": "integer", "default": 1},
                                "v": {"type": "integer"},
                            },
                        },
                    },
                },
            }
        },
    }
)


def thing(spec: Object) -> Object:
    return {"apiVersion": "x.dev/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": spec}


def apply(live: Object | None, spec: Object, manager: str = "m1", *, force: bool = False, now: str = "T1") -> Object:
    return server_side_apply(
        live,
        thing(spec),
        manager=manager,
        force=force,
        subresource=None,
        api_version="x.dev/v1",
        schema=SCHEMA,
        now=now,
    )


def update(live: Object | None, new: Object, manager: str = "u1", now: str = "T1") -> Object:
    return record_update(live, new, manager=manager, subresource=None, api_version="x.dev/v1", schema=SCHEMA, now=now)


def owned(obj: Object) -> dict[tuple[str, str], Object]:
    entries = obj["metadata"].get("managedFields", [])
    return {(entry["manager"], entry["operation"]): entry["fieldsV1"] for entry in entries}


# --- creating and updating -------------------------------------------------------------------------------------------


def test_creating_a_pod_claims_what_the_client_sent_but_not_the_structs_that_always_exist() -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "labels": {"app": "x"}, "finalizers": ["a.b/c"], "ownerReferences": [{"uid": "1"}]},
        "spec": {
            "containers": [
                {"name": "c", "env": [{"name": "A", "value": "1"}], "ports": [{"containerPort": 80}], "resources": {}}
            ],
            "nodeSelector": {"a": "b"},
        },
    }
    schema = type_schema.for_builtin("v1/Pod")
    created = record_update(None, pod, manager="me", subresource=None, api_version="v1", schema=schema, now="T")
    assert created["metadata"]["managedFields"] == [
        {
            "manager": "me",
            "operation": "Update",
            "apiVersion": "v1",
            "time": "T",
            "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:metadata": {
                    "f:finalizers": {".": {}, 'v:"a.b/c"': {}},
                    "f:labels": {".": {}, "f:app": {}},
                    "f:ownerReferences": {".": {}, 'k:{"uid":"1"}': {}},
                },
                "f:spec": {
                    "f:containers": {
                        'k:{"name":"c"}': {
                            ".": {},
                            "f:env": {".": {}, 'k:{"name":"A"}': {".": {}, "f:name": {}, "f:value": {}}},
                            "f:name": {},
                            "f:ports": {
                                ".": {},
                                'k:{"containerPort":80,"protocol":"TCP"}': {".": {}, "f:containerPort": {}},
                            },
                            "f:resources": {},
                        }
                    },
                    "f:nodeSelector": {},
                },
            },
        }
    ]


def test_creating_a_custom_resource_claims_every_container_too() -> None:
    created = update(None, thing({"a": 1, "o": {"x": 1}, "keyed": [{"k": "a"}]}))
    assert owned(created) == {
        ("u1", "Update"): {
            "f:spec": {
                ".": {},
                "f:a": {},
                "f:keyed": {".": {}, 'k:{"j":1,"k":"a"}': {".": {}, "f:k": {}}},
                "f:o": {".": {}, "f:x": {}},
            }
        }
    }


def test_an_update_takes_what_it_changes_from_the_others_and_drops_what_it_removes() -> None:
    created = update(None, thing({"a": 1, "o": {"x": 1, "y": 1}}))
    changed = update(created, {**created, "spec": {"a": 2, "o": {"x": 1}}}, "u2", "T2")
    assert owned(changed) == {
        ("u1", "Update"): {"f:spec": {".": {}, "f:o": {".": {}, "f:x": {}}}},
        ("u2", "Update"): {"f:spec": {"f:a": {}}},
    }


def test_an_update_that_changes_nothing_leaves_owners_and_times_alone() -> None:
    created = update(None, thing({"a": 1}))
    assert update(created, created, "u2", "T2") == created


@pytest.mark.parametrize("cleared", [[], [{}]])
def test_managed_fields_can_be_cleared_and_stay_so_until_an_apply(cleared: list[Object]) -> None:
    created = update(None, thing({"a": 1}))
    bare = update(created, {**created, "metadata": {"name": "t", "managedFields": cleared}})
    assert owned(bare) == {}
    assert owned(update(bare, {**bare, "spec": {"a": 2}})) == {}
    applied = apply(bare, {"o": {"x": 1}})
    assert owned(applied) == {
        ("before-first-apply", "Update"): {"f:spec": {".": {}, "f:a": {}}},
        ("m1", "Apply"): {"f:spec": {"f:o": {"f:x": {}}}},
    }


def test_more_than_ten_updaters_are_merged_into_ancient_changes() -> None:
    live = update(None, thing({"map": {}}))
    for index in range(12):
        changed = {**live, "spec": {"map": {**live["spec"]["map"], str(index): "x"}}}
        live = update(live, changed, f"u{index + 10}", f"T{index + 10}")
    updaters = [entry["manager"] for entry in live["metadata"]["managedFields"]]
    assert len(updaters) == 10
    assert updaters.count("ancient-changes") == 1


# --- server-side apply -----------------------------------------------------------------------------------------------


def test_applying_less_removes_what_nobody_else_owns() -> None:
    first = apply(None, {"a": 1, "map": {"x": "1", "y": "1"}, "set": ["p", "q"], "keyed": [{"k": "a"}, {"k": "b"}]})
    shared = apply(first, {"map": {"y": "1"}}, "m2")
    second = apply(shared, {"set": ["q"], "keyed": [{"k": "b", "v": 2}]})
    assert second["spec"] == {"map": {"y": "1"}, "set": ["q"], "keyed": [{"k": "b", "v": 2}]}
    assert owned(second) == {
        ("m1", "Apply"): {
            "f:spec": {
                "f:keyed": {'k:{"j":1,"k":"b"}': {".": {}, "f:k": {}, "f:v": {}}},
                "f:set": {'v:"q"': {}},
            }
        },
        ("m2", "Apply"): {"f:spec": {"f:map": {"f:y": {}}}},
    }


def test_a_conflict_names_each_field_and_its_owner() -> None:
    live = apply(None, {"a": 1, "keyed": [{"k": "a", "v": 1}]})
    live = update(live, {**live, "spec": {**live["spec"], "atomic": {"p": "1"}}}, "u1")
    with pytest.raises(ApplyConflict) as conflict:
        apply(live, {"a": 2, "keyed": [{"k": "a", "v": 2}], "atomic": {"p": "2"}}, "m2")
    assert conflict.value.causes == [
        ("m1", ".spec.a", 'conflict with "m1"'),
        ("m1", '.spec.keyed[j=1,k="a"].v', 'conflict with "m1"'),
        ("u1", ".spec.atomic", 'conflict with "u1" using x.dev/v1'),
    ]
    assert conflict.value.message == (
        'Apply failed with 3 conflicts: conflicts with "m1":\n- .spec.a\n- .spec.keyed[j=1,k="a"].v\n'
        'conflicts with "u1" using x.dev/v1:\n- .spec.atomic'
    )


def test_one_conflict_is_told_in_one_line() -> None:
    with pytest.raises(ApplyConflict) as conflict:
        apply(apply(None, {"a": 1}), {"a": 2}, "m2")
    assert conflict.value.message == 'Apply failed with 1 conflict: conflict with "m1": .spec.a'


def test_force_takes_the_fields_over() -> None:
    taken = apply(apply(None, {"a": 1, "o": {"x": 1}}), {"a": 2}, "m2", force=True)
    assert taken["spec"] == {"a": 2, "o": {"x": 1}}
    assert owned(taken) == {("m1", "Apply"): {"f:spec": {"f:o": {"f:x": {}}}}, ("m2", "Apply"): {"f:spec": {"f:a": {}}}}


def test_equal_values_are_shared_and_one_owner_alone_cannot_remove_them() -> None:
    shared = apply(apply(None, {"a": 1}), {"a": 1}, "m2")
    assert set(owned(shared)) == {("m1", "Apply"), ("m2", "Apply")}
    assert apply(shared, {"o": {"x": 1}})["spec"] == {"a": 1, "o": {"x": 1}}


def test_applied_items_come_in_the_applied_order_and_others_keep_their_place() -> None:
    live = update(None, thing({"set": ["a", "b", "c"]}))
    assert apply(live, {"set": ["c", "x"]})["spec"]["set"] == ["a", "b", "c", "x"]
    assert apply(live, {"set": ["b", "a"]})["spec"]["set"] == ["b", "c", "a"]


@pytest.mark.parametrize("items", [[{"v": 1}, {"v": 2}], [{"k": "a"}, {"k": "a", "j": 1}]])
def test_a_list_that_cannot_be_merged_is_refused(items: list[Object]) -> None:
    with pytest.raises(ValueError, match="duplicate entries for key"):
        apply(thing({"keyed": []}), {"keyed": items})


def test_kubectl_moves_from_client_side_to_server_side_apply_without_conflicts() -> None:
    last = '{"apiVersion":"x.dev/v1","kind":"Thing","metadata":{"name":"t"},"spec":{"a":1}}'
    configured = thing({"a": 1})
    configured["metadata"]["annotations"] = {managed_fields.LAST_APPLIED: last}
    live = update(None, configured, "kubectl-client-side-apply")
    applied = apply(live, {"a": 2}, "kubectl")
    assert applied["spec"] == {"a": 2}
    assert '"spec":{"a":2}' in applied["metadata"]["annotations"][managed_fields.LAST_APPLIED]
    with pytest.raises(ApplyConflict):
        apply(live, {"a": 2}, "another")


def test_an_apply_that_changes_nothing_keeps_its_time() -> None:
    live = apply(None, {"a": 1, "set": ["b", "a"]}, now="T1")
    assert apply(live, {"a": 1, "set": ["b", "a"]}, now="T2") == live


keys = st.sampled_from("abc")
specs = st.fixed_dictionaries(
    {},
    optional={
        "a": st.integers(0, 2),
        "o": st.fixed_dictionaries({}, optional={"x": st.integers(0, 1), "y": st.integers(0, 1)}),
        "map": st.dictionaries(keys, keys),
        "atomic": st.dictionaries(keys, keys),
        "list": st.lists(st.integers(0, 2), max_size=2),
        "set": st.lists(keys, unique=True),
        "keyed": st.lists(keys, unique=True).map(lambda names: [{"k": name, "v": ord(name)} for name in names]),
    },
)


@given(specs, specs, specs)
def test_applying_the_same_twice_changes_nothing(first: Object, others: Object, second: Object) -> None:
    live = apply(apply(None, first), others, "m2", force=True)
    once = apply(live, second, force=True, now="T2")
    assume(owned(once))  # an empty list owns nothing, and what nobody owns is taken for older than the first apply
    assert apply(once, second, force=True, now="T3") == once


@given(specs, specs)
def test_what_is_applied_is_what_the_object_has_when_nobody_else_owns_anything(first: Object, second: Object) -> None:
    def without_empties(spec: Object) -> Object:
        return {name: value for name, value in spec.items() if value not in ({}, [])}

    applied = apply(apply(None, first), second)
    assert without_empties(applied["spec"]) == without_empties(second)


@given(specs, specs, specs)
def test_field_sets_obey_the_laws_of_sets(first: Object, second: Object, third: Object) -> None:
    a, b, c = (field_sets.of_value(thing(spec), SCHEMA) for spec in (first, second, third))
    union, difference, intersection = field_sets.union, field_sets.difference, field_sets.intersection
    assert union(a, b) == union(b, a)
    assert union(union(a, b), c) == union(a, union(b, c))
    assert intersection(a, union(a, b)) == a
    assert union(difference(a, b), intersection(a, b)) == a
    assert difference(difference(a, b), c) == difference(a, union(b, c))


@given(specs, specs)
def test_objects_without_changes_between_them_are_equal(first: Object, second: Object) -> None:
    for spec in (first, second):  # the order of a set's members is no field
        spec.get("set", []).sort()
        spec.get("keyed", []).sort(key=lambda item: item["k"])
    old, new = thing(first), thing(second)
    changes = field_sets.compare(old, new, SCHEMA)
    assert (old == new) == (changes == ({}, {}, {}))
    assert field_sets.compare(new, old, SCHEMA).removed == changes.added
