# ruff: noqa: E501 - a message is one line, as the server sends it
"""Structural schemas. Messages are those of a kube-apiserver; where releases differ, those of the newest."""

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_local.schema.structural import check_structural, compile_schema

Object = dict[str, Any]


def of_spec(properties: Object, **more: Any) -> Object:
    """The schema of a resource whose spec has these properties."""
    return {"type": "object", "properties": {"spec": {"type": "object", "properties": properties, **more}}}


def messages(schema: Object, spec: Object, old: Object | None = None) -> list[str]:
    checker = compile_schema(schema)
    errors = checker.validate({"spec": spec}, None if old is None else {"spec": old})
    return [error.message for error in errors]


INT = {"type": "integer"}
STR = {"type": "string"}
LIST_MAP = {
    "type": "array",
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["k"],
    "items": {"type": "object", "required": ["k"], "properties": {"k": STR, "v": {"type": "integer", "maximum": 5}}},
}

# --- validation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "value", "expected"),
    [
        (INT, "a", 'spec.x: Invalid value: "string": spec.x in body must be of type integer: "string"'),
        (INT, 1.5, 'spec.x: Invalid value: "number": spec.x in body must be of type integer: "number"'),
        (INT, True, 'spec.x: Invalid value: "boolean": spec.x in body must be of type integer: "boolean"'),
        (STR, None, 'spec.x: Invalid value: "null": spec.x in body must be of type string: "null"'),
        ({**INT, "minimum": 1}, 0, "spec.x: Invalid value: 0: spec.x in body should be greater than or equal to 1"),
        ({**INT, "maximum": 2}, 3, "spec.x: Invalid value: 3: spec.x in body should be less than or equal to 2"),
        ({**INT, "minimum": 1, "exclusiveMinimum": True}, 1, "spec.x: Invalid value: 1: spec.x in body should be greater than 1"),
        ({**INT, "maximum": 5, "exclusiveMaximum": True}, 5, "spec.x: Invalid value: 5: spec.x in body should be less than 5"),
        ({"type": "number", "maximum": 1e7}, 12345678.5, "spec.x: Invalid value: 1.23456785e+07: spec.x in body should be less than or equal to 1e+07"),
        ({"type": "number", "multipleOf": 0.5}, 0.3, "spec.x: Invalid value: 0.3: spec.x in body should be a multiple of 0.5"),
        ({**INT, "format": "int32"}, 2**31, '<nil>: Invalid value: "": Checked value must be of type integer with format int32 in spec.x'),
        ({**STR, "minLength": 2}, "a", 'spec.x: Invalid value: "a": spec.x in body should be at least 2 chars long'),
        ({**STR, "maxLength": 4}, "abcde", "spec.x: Too long: may not be more than 4 bytes"),
        ({**STR, "pattern": "^[a-z]+$"}, 'a"\n', r'''spec.x: Invalid value: "a\"\n": spec.x in body should match '^[a-z]+$' '''.strip()),
        ({**STR, "enum": ["a", "b"]}, "c", 'spec.x: Unsupported value: "c": supported values: "a", "b"'),
        ({**INT, "enum": [1, 2]}, 3, 'spec.x: Unsupported value: 3: supported values: "1", "2"'),
        ({**STR, "format": "date-time"}, "x", 'spec.x: Invalid value: "x": spec.x in body must be of type date-time: "x"'),
        ({**STR, "format": "date-time"}, 5, 'spec.x: Invalid value: "int64": spec.x in body must be of type date-time: "int64"'),
        ({"type": "array", "items": STR, "minItems": 1}, [], "spec.x: Invalid value: 0: spec.x in body should have at least 1 items"),
        ({"type": "array", "items": STR, "maxItems": 1}, ["a", "b"], "spec.x: Too many: 2: must have at most 1 item"),
        ({"type": "array", "items": STR}, [1], 'spec.x[0]: Invalid value: "integer": spec.x[0] in body must be of type string: "integer"'),
        ({"type": "object", "additionalProperties": INT}, {"a": "b"}, 'spec.x.a: Invalid value: "string": spec.x.a in body must be of type integer: "string"'),
        ({"type": "object", "additionalProperties": INT, "minProperties": 1}, {}, "spec.x: Invalid value: 0: spec.x in body should have at least 1 properties"),
        ({"x-kubernetes-int-or-string": True}, 1.5, 'spec.x: Invalid value: "number": spec.x in body must be of type integer,string: "number"'),
        ({**STR, "not": {"enum": ["bad"]}}, "bad", '<nil>: Invalid value: "": "spec.x" must not validate the schema (not)'),
        ({"type": "object", "required": ["a"], "properties": {"a": STR}}, {}, "spec.x.a: Required value"),
        (LIST_MAP, [{"k": "a"}, {"k": "a"}], 'spec.x[1]: Duplicate value: {"k":"a"}'),
        (LIST_MAP, [{"v": 1}], "spec.x[0].k: Required value"),
        ({"type": "array", "x-kubernetes-list-type": "set", "items": STR}, ["a", "b", "a"], 'spec.x[2]: Duplicate value: "a"'),
        ({"type": "object", "x-kubernetes-embedded-resource": True, "x-kubernetes-preserve-unknown-fields": True}, {"kind": "Pod"}, "spec.x.apiVersion: Required value"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_in_kubernetes_words(schema: Object, value: Any, expected: str) -> None:
    assert messages(of_spec({"x": schema}), {"x": value}) == [expected]


UNION = {"type": "object", "properties": {"a": INT, "b": INT}}


@pytest.mark.parametrize(
    ("junctor", "value", "expected"),
    [
        ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, {},
         ['<nil>: Invalid value: "": "spec.x" must validate one and only one schema (oneOf). Found none valid',
          "spec.x.a: Required value"]),
        ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, {"a": 1, "b": 1},
         ['<nil>: Invalid value: "": "spec.x" must validate one and only one schema (oneOf). Found 2 valid alternatives']),
        ({"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, {},
         ['<nil>: Invalid value: "": "spec.x" must validate at least one schema (anyOf)', "spec.x.a: Required value"]),
        ({"allOf": [{"required": ["a"]}, {"required": ["b"]}]}, {"a": 1},
         ["spec.x.b: Required value", '<nil>: Invalid value: "": "spec.x" must validate all the schemas (allOf)']),
        ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, {"a": 1}, []),
    ],
)  # fmt: skip
def test_junctors_say_what_failed(junctor: Object, value: Object, expected: list[str]) -> None:
    assert messages(of_spec({"x": {**UNION, **junctor}}), {"x": value}) == expected


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("date-time", ["2020-01-01T00:00:00Z", "2020-01-01T00:00:00.5+01:00"], ["2020-01-01", "2020-13-01T00:00:00Z", ""]),
        ("duration", ["1h30m", "5 days", "0"], ["x", "5"]),
        ("byte", ["YWI=", ""], ["!", "abc"]),
        ("ipv4", ["1.2.3.4"], ["1.2", "::1"]),
        ("ipv6", ["::1"], ["x", "1.2.3.4"]),
        ("cidr", ["10.0.0.0/8"], ["10.0.0.0"]),
        ("uuid", ["123e4567-e89b-12d3-a456-426614174000"], ["x"]),
        ("uri", ["http://x/y", "/x"], ["a b", "x"]),
        ("email", ["a@b.c"], ["x"]),
        ("hostname", ["example.com", "localhost"], ["-", "a.b", "a..bc"]),
        ("mac", ["00:00:5e:00:53:01"], ["x"]),
        ("date", ["2020-02-29"], ["2021-02-29"]),
        ("isbn", ["0321751043", "978-0321751041"], ["0321751044"]),
        ("creditcard", ["4111 1111 1111 1111"], ["4111 1111 1111 1112"]),
        ("no-such-format", ["anything"], []),
    ],
)  # fmt: skip
def test_formats_are_checked(name: str, good: list[str], bad: list[str]) -> None:
    schema = of_spec({"x": {**STR, "format": name}})
    assert [text for text in good if messages(schema, {"x": text})] == []
    assert [text for text in bad if not messages(schema, {"x": text})] == []


def test_an_update_does_not_raise_old_errors_again_where_nothing_changed() -> None:
    schema = of_spec({"a": {"type": "integer", "maximum": 1}, "b": INT, "l": LIST_MAP})
    old = {"a": 5, "b": 1, "l": [{"k": "x", "v": 9}]}
    assert messages(schema, {**old, "b": 2}, old) == []
    assert messages(schema, {**old, "a": 6}, old) == [
        "spec.a: Invalid value: 6: spec.a in body should be less than or equal to 1"
    ]
    moved = {**old, "l": [{"k": "new", "v": 9}, {"k": "x", "v": 9}]}
    assert messages(schema, moved, old) == [
        "spec.l[0].v: Invalid value: 9: spec.l[0].v in body should be less than or equal to 5"
    ]


# --- defaulting and pruning ------------------------------------------------------------------------------------------

DEFAULTED = of_spec(
    {
        "n": {"type": "integer", "default": 3},
        "o": {"type": "object", "default": {}, "properties": {"p": {"type": "string", "default": "q"}}},
        "absent": {"type": "object", "properties": {"p": {"type": "string", "default": "q"}}},
        "nullable": {"type": "string", "nullable": True, "default": "x"},
        "plain": STR,
        "l": {"type": "array", "items": {"type": "object", "properties": {"d": {"type": "integer", "default": 1}}}},
        "m": {"type": "object", "additionalProperties": {"type": "integer", "default": 7}},
    }
)


def test_defaults_are_filled_in_where_the_parent_is_there() -> None:
    checker = compile_schema(DEFAULTED)
    defaulted = checker.default(
        {"spec": {"l": [{}, {"d": 5}], "nullable": None, "plain": None, "n": None, "m": {"a": None}}}
    )
    assert defaulted == {"spec": {"n": 3, "o": {"p": "q"}, "l": [{"d": 1}, {"d": 5}], "nullable": None, "m": {"a": 7}}}
    assert checker.default({}) == {}


def test_a_default_is_not_shared_between_objects() -> None:
    checker = compile_schema(DEFAULTED)
    first = checker.default({"spec": {}})
    first["spec"]["o"]["p"] = "changed"
    assert checker.default({"spec": {}})["spec"]["o"] == {"p": "q"}


def test_unknown_fields_are_pruned_and_named() -> None:
    schema = of_spec(
        {
            "known": {"type": "object", "properties": {"a": INT}},
            "l": {"type": "array", "items": {"type": "object", "properties": {"a": INT}}},
            "free": {
                "type": "object",
                "x-kubernetes-preserve-unknown-fields": True,
                "properties": {"k": {"type": "object"}},
            },
            "pod": {
                "type": "object",
                "x-kubernetes-embedded-resource": True,
                "properties": {"spec": {"type": "object"}},
            },
        }
    )
    obj = {
        "apiVersion": "x/v1",
        "kind": "X",
        "metadata": {"name": "n", "bogus": 1},
        "top": 1,
        "spec": {
            "known": {"a": 1, "b": 2},
            "l": [{"a": 1}, {"z": 1}],
            "free": {"any": {"thing": 1}, "k": {"z": 1}},
            "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"x": 1}, "status": {}},
        },
    }
    pruned, unknown = compile_schema(schema).prune(obj)
    assert unknown == [
        "metadata.bogus",
        "spec.free.k.z",
        "spec.known.b",
        "spec.l[1].z",
        "spec.pod.spec.x",
        "spec.pod.status",
        "top",
    ]
    assert pruned == {
        "apiVersion": "x/v1",
        "kind": "X",
        "metadata": {"name": "n"},
        "spec": {
            "known": {"a": 1},
            "l": [{"a": 1}, {}],
            "free": {"any": {"thing": 1}, "k": {}},
            "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {}},
        },
    }


names = st.sampled_from(["n", "o", "p", "plain", "nullable", "l", "m", "d", "zzz"])
anything = st.recursive(
    st.none() | st.integers(0, 3) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


@given(anything)
def test_pruning_and_defaulting_are_idempotent(spec: Any) -> None:
    checker = compile_schema(DEFAULTED)
    pruned, _ = checker.prune({"spec": deepcopy(spec)})
    again, unknown = checker.prune(deepcopy(pruned))
    assert (again, unknown) == (pruned, [])
    defaulted = checker.default(deepcopy(pruned))
    assert checker.default(deepcopy(defaulted)) == defaulted
    assert checker.prune(deepcopy(defaulted)) == (defaulted, [])


# --- what a schema may say -------------------------------------------------------------------------------------------

P = "openAPIV3Schema.properties[a]"


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({}, [f"{P}.type: Required value: must not be empty for specified object fields"]),
        ({"type": "array"}, [f"{P}.items: Required value: must be specified"]),
        ({"type": "string", "$ref": "#/x"}, [f"{P}.$ref: Forbidden: $ref is not supported"]),
        ({"type": "foo"}, [f'{P}.type: Unsupported value: "foo": supported values: "array", "boolean", "integer", "number", "object", "string"']),
        ({"type": "integer", "default": "x"}, [f'{P}.default: Invalid value: "string":  in body must be of type integer: "string"']),
        ({"type": "object", "default": {"b": 1}, "properties": {"c": INT}}, [f'{P}.default: Invalid value: {{"b":1}}: must not have unknown fields']),
        ({"type": "object", "default": {}, "required": ["b"], "properties": {"b": STR}}, [f"{P}.default.b: Required value"]),
        ({"type": "string", "enum": ["a"], "default": "b"}, [f'{P}.default: Unsupported value: "b": supported values: "a"']),
        ({"type": "object", "anyOf": [{"properties": {"b": {"type": "integer"}}}]}, [f"{P}.anyOf[0].properties[b].type: Forbidden: must be empty to be structural"]),
        ({"type": "object", "anyOf": [{"description": "d", "nullable": True}]}, [f"{P}.anyOf[0].description: Forbidden: must be empty to be structural", f"{P}.anyOf[0].nullable: Forbidden: must be false to be structural"]),
        ({"type": "object", "properties": {"b": STR}, "additionalProperties": STR}, [f"{P}.additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive"]),
        ({"type": "array", "uniqueItems": True, "items": STR}, [f"{P}.uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic"]),
        ({"type": "string", "pattern": "["}, [f"{P}.pattern: Invalid value: \"[\": must be a valid regular expression, but isn't: error parsing regexp: missing closing ]: `[`"]),
        ({"type": "array", "x-kubernetes-list-type": "map", "items": {"type": "object"}}, [f"{P}.x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map"]),
        ({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "properties": {"k": STR}}}, [f"{P}.items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"]),
        ({"type": "string", "x-kubernetes-list-type": "set"}, [f'{P}.type: Invalid value: "string": must be array if x-kubernetes-list-type is specified']),
        ({"type": "object", "x-kubernetes-embedded-resource": True}, [f"{P}.properties: Required value: must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields"]),
        ({"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}, []),
        ({"x-kubernetes-preserve-unknown-fields": True}, []),
    ],
)  # fmt: skip
def test_a_schema_that_is_not_structural_is_refused(schema: Object, expected: list[str]) -> None:
    assert check_structural({"type": "object", "properties": {"a": schema}}) == expected


def test_the_root_of_a_schema_is_an_object_with_plain_metadata() -> None:
    assert check_structural({"properties": {}}) == [
        "openAPIV3Schema.type: Required value: must not be empty at the root"
    ]
    assert check_structural({"type": "object", "properties": {"metadata": {"type": "object", "description": "d"}}}) == [
        "openAPIV3Schema.properties[metadata]: Forbidden: must not specify anything other than name and generateName, "
        "but metadata is implicitly specified"
    ]
