"""The three patch formats, checked against what a kube-apiserver answers and against the laws of their RFCs."""

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_local.schema.patches import PatchError, apply_json_patch, apply_merge_patch, apply_strategic_merge_patch

names = st.text(alphabet="ab/~é", min_size=1, max_size=3)
scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(0, 2) | names
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
)
json_objects = st.dictionaries(names, json_values, max_size=4)


def pointer(path: list[str]) -> str:
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in path)


# --- JSON patch ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("doc", "ops", "expected"),
    [
        ({"a": 1}, [{"op": "add", "path": "/b", "value": 2}], {"a": 1, "b": 2}),
        ({"l": [1, 3]}, [{"op": "add", "path": "/l/1", "value": 2}], {"l": [1, 2, 3]}),
        ({"l": [1]}, [{"op": "add", "path": "/l/-", "value": 2}], {"l": [1, 2]}),
        ({"l": [1, 2]}, [{"op": "remove", "path": "/l/0"}], {"l": [2]}),
        ({"a": {"b": 1}}, [{"op": "replace", "path": "/a/b", "value": None}], {"a": {"b": None}}),
        ({"a/b": 1, "c~d": 2}, [{"op": "remove", "path": "/a~1b"}, {"op": "remove", "path": "/c~0d"}], {}),
        ({"a": {"b": 1}}, [{"op": "move", "from": "/a/b", "path": "/c"}], {"a": {}, "c": 1}),
        ({"a": [1]}, [{"op": "copy", "from": "/a", "path": "/b"}, {"op": "add", "path": "/b/-", "value": 2}],
         {"a": [1], "b": [1, 2]}),
        ({"a": 1}, [{"op": "test", "path": "/missing", "value": None}], {"a": 1}),
        ({"a": 1}, [{"op": "replace", "path": "", "value": [1]}], [1]),
    ],
)  # fmt: skip
def test_a_json_patch_does_what_its_operations_say(doc: Any, ops: Any, expected: Any) -> None:
    assert apply_json_patch(doc, ops) == expected


@pytest.mark.parametrize(
    ("ops", "code", "word"),
    [
        ([{"op": "test", "path": "/a", "value": 2}], 422, "test failed"),
        ([{"op": "test", "path": "/a", "value": True}], 422, "test failed"),
        ([{"op": "remove", "path": "/missing"}], 422, "missing"),
        ([{"op": "replace", "path": "/missing", "value": 1}], 422, "missing"),
        ([{"op": "add", "path": "/missing/x", "value": 1}], 422, "missing"),
        ([{"op": "add", "path": "/l/9", "value": 1}], 422, "out of range"),
        ([{"op": "add", "path": "/l/01", "value": 1}], 422, "invalid array index"),
        ([{"op": "move", "from": "/l", "path": "/l/0"}], 422, "itself"),
        ([{"op": "frobnicate", "path": "/a"}], 422, "frobnicate"),
        ([{"op": "add", "path": "a", "value": 1}], 400, "JSON pointer"),
        ({"op": "add"}, 400, "list"),
        ([{"op": "remove", "path": "/a"}] * 10_001, 413, "10000"),
    ],
)
def test_a_json_patch_that_cannot_be_applied_says_why(ops: Any, code: int, word: str) -> None:
    with pytest.raises(PatchError) as failure:
        apply_json_patch({"a": 1, "l": []}, ops)
    assert failure.value.code == code
    assert word in failure.value.message


@given(json_objects, names, json_values)
def test_an_added_member_tests_equal_and_can_be_removed_again(doc: Any, name: str, value: Any) -> None:
    before = deepcopy(doc)
    path = pointer([name])
    added = apply_json_patch(
        doc, [{"op": "add", "path": path, "value": value}, {"op": "test", "path": path, "value": value}]
    )
    assert added == {**before, name: value}
    assert apply_json_patch(added, [{"op": "remove", "path": path}]) == {k: v for k, v in before.items() if k != name}
    assert doc == before


# --- merge patch -----------------------------------------------------------------------------------------------------

no_nulls = st.recursive(
    st.booleans() | st.integers(-3, 3) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


def merge_diff(old: Any, new: Any) -> Any:
    """The merge patch from `old` to `new`."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    patch = {name: merge_diff(old.get(name), value) for name, value in new.items() if old.get(name) != value}
    return {**patch, **{name: None for name in old if name not in new}}


@given(st.dictionaries(names, no_nulls, max_size=4), st.dictionaries(names, no_nulls, max_size=4))
def test_the_merge_patch_between_two_documents_leads_from_one_to_the_other(old: Any, new: Any) -> None:
    before = deepcopy(old)
    assert apply_merge_patch(old, merge_diff(old, new)) == new
    assert old == before


@given(json_values, json_values)
def test_a_merge_patch_applied_twice_is_a_merge_patch_applied_once(doc: Any, patch: Any) -> None:
    once = apply_merge_patch(doc, patch)
    assert apply_merge_patch(once, patch) == once


def test_nulls_in_a_new_part_of_a_merge_patch_are_dropped() -> None:
    assert apply_merge_patch({}, {"a": {"b": None, "c": 1}, "l": [None]}) == {"a": {"c": 1}, "l": [None]}


# --- strategic merge patch -------------------------------------------------------------------------------------------

POD = {
    "metadata": {"labels": {"a": "1"}, "finalizers": ["x.y/one"]},
    "spec": {
        "containers": [
            {"name": "main", "image": "i", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
            {"name": "side", "image": "s", "command": ["x"]},
        ],
        "volumes": [{"name": "v", "emptyDir": {}}],
        "tolerations": [{"key": "a"}],
    },
}


def patched(patch: dict[str, Any]) -> dict[str, Any]:
    before = deepcopy(POD)
    result = apply_strategic_merge_patch(POD, patch, "v1/Pod")
    assert before == POD
    return result


def test_keyed_lists_merge_item_by_item() -> None:
    result = patched({"spec": {"containers": [{"name": "main", "image": "j", "env": [{"name": "B", "value": "3"}]}]}})
    assert result["spec"]["containers"] == [
        {"name": "main", "image": "j", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "3"}]},
        {"name": "side", "image": "s", "command": ["x"]},
    ]


def test_an_item_is_deleted_by_its_key() -> None:
    result = patched({"spec": {"containers": [{"name": "side", "$patch": "delete"}]}})
    assert [container["name"] for container in result["spec"]["containers"]] == ["main"]


def test_lists_without_keys_are_replaced() -> None:
    result = patched({"spec": {"tolerations": [{"key": "b"}], "containers": [{"name": "side", "command": ["y"]}]}})
    assert result["spec"]["tolerations"] == [{"key": "b"}]
    assert result["spec"]["containers"][1]["command"] == ["y"]


def test_a_keyed_list_or_a_map_can_be_replaced_whole() -> None:
    result = patched(
        {
            "metadata": {"labels": {"$patch": "replace", "b": "2"}},
            "spec": {"containers": [{"$patch": "replace"}, {"name": "new", "image": "n"}]},
        }
    )
    assert result["metadata"]["labels"] == {"b": "2"}
    assert result["spec"]["containers"] == [{"name": "new", "image": "n"}]


def test_finalizers_are_added_and_deleted_one_by_one() -> None:
    assert patched({"metadata": {"finalizers": ["x.y/two"]}})["metadata"]["finalizers"] == ["x.y/one", "x.y/two"]
    deleted = patched({"metadata": {"$deleteFromPrimitiveList/finalizers": ["x.y/one"]}})
    assert deleted["metadata"]["finalizers"] == []


def test_set_element_order_orders_what_it_names_and_keeps_the_rest_in_place() -> None:
    patch = {
        "spec": {
            "$setElementOrder/containers": [{"name": "new"}, {"name": "main"}],
            "containers": [{"name": "new", "image": "n"}],
        }
    }
    names_in_order = [container["name"] for container in patched(patch)["spec"]["containers"]]
    assert names_in_order == ["new", "main", "side"]


def test_retain_keys_clears_the_other_members_of_a_union() -> None:
    patch = {"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}}
    assert patched(patch)["spec"]["volumes"] == [{"name": "v", "hostPath": {"path": "/x"}}]


@pytest.mark.parametrize(
    "patch",
    [
        {"spec": {"containers": [{"image": "no key"}]}},
        {"spec": {"$patch": "frobnicate"}},
        {"spec": {"volumes": [{"name": "v", "$retainKeys": ["name"], "hostPath": {"path": "/x"}}]}},
        {"spec": {"$setElementOrder/containers": [{"name": "main"}], "containers": [{"name": "side"}]}},
        {"metadata": {"$deleteFromPrimitiveList/finalizers": "x"}},
    ],
)
def test_a_directive_that_contradicts_itself_is_refused(patch: dict[str, Any]) -> None:
    with pytest.raises(PatchError) as failure:
        patched(patch)
    assert failure.value.code == 400


def test_service_ports_are_keyed_by_port_and_null_deletes_a_field() -> None:
    service = {"spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 3}, {"port": 81}]}}
    patch = {"spec": {"type": None, "ports": [{"port": 80, "nodePort": None}]}}
    result = apply_strategic_merge_patch(service, patch, "v1/Service")
    assert result == {"spec": {"ports": [{"port": 80}, {"port": 81}]}}
