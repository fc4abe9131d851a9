# ruff: noqa: E501 - a message is one line, as the server sends it
"""x-kubernetes-validations: what compiles, what is refused, and what rules say about objects."""

from typing import Any

import pytest

from capstan_local.schema.structural import check_structural, compile_schema

Object = dict[str, Any]

PROPERTIES: Object = {
    "min": {"type": "integer"},
    "max": {"type": "integer"},
    "name": {"type": "string"},
    "ratio": {"type": "number"},
    "at": {"type": "string", "format": "date-time"},
    "wait": {"type": "string", "format": "duration"},
    "data": {"type": "string", "format": "byte"},
    "in": {"type": "string"},
    "a-b": {"type": "integer"},
    "size": {"x-kubernetes-int-or-string": True},
    "memory": {"type": "string"},
    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    "items": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "string"}}}},
    "numbers": {"type": "array", "items": {"type": "integer"}},
    "labels": {"type": "object", "additionalProperties": {"type": "integer"}},
    "nested": {"type": "object", "properties": {"deep": {"type": "integer"}}},
}
SPEC: Object = {
    "min": 1,
    "max": 2,
    "name": "ab-c",
    "ratio": 1,
    "at": "2020-01-01T00:00:00Z",
    "wait": "1h30m",
    "data": "YWI=",
    "in": "x",
    "a-b": 3,
    "size": "10%",
    "memory": "1Gi",
    "items": [{"n": "a"}, {"n": "b"}],
    "numbers": [1, 2, 3],
    "labels": {"one": 1},
    "nested": {"deep": 4},
}


def schema_with(*rules: Object) -> Object:
    spec = {"type": "object", "properties": PROPERTIES, "x-kubernetes-validations": list(rules)}
    return {"type": "object", "properties": {"spec": spec}}


def failures(rule: Object | str, spec: Object | None = None, old: Object | None = None) -> list[str]:
    rule = {"rule": rule} if isinstance(rule, str) else rule
    schema = schema_with(rule)
    assert check_structural(schema) == []
    obj = {"spec": SPEC if spec is None else spec}
    return [error.message for error in compile_schema(schema).validate(obj, {"spec": old} if old is not None else None)]


@pytest.mark.parametrize(
    "rule",
    [
        "self.min <= self.max",
        "has(self.min) && !has(self.free)",
        "self.items.all(i, i.n.size() == 1)",
        "self.items.exists(i, i.n == 'b') && self.items.exists_one(i, i.n == 'a')",
        "self.items.filter(i, i.n != 'a').map(i, i.n) == ['b']",
        "self.labels.all(k, self.labels[k] > 0) && 'one' in self.labels",
        "self.name.matches('^[a-z-]+$') && self.name.startsWith('ab') && self.name.split('-').size() == 2",
        "self.name.lowerAscii().replace('-', '').indexOf('c') == 2",
        "self.ratio * 2.0 == 2.0",
        "self.at > timestamp('2019-01-01T00:00:00Z') && self.wait == duration('90m')",
        "self.data == b'ab'",
        "self.__in__ == 'x' && self.a__dash__b == 3",
        "type(self.size) == string ? self.size.endsWith('%') : self.size > 0",
        "quantity(self.memory).isGreaterThan(quantity('512Mi')) && isQuantity('1k') && !isQuantity('x')",
        "quantity('1').add(quantity('500m')).compareTo(quantity('1500m')) == 0",
        "self.numbers.isSorted() && self.numbers.sum() == 6 && self.numbers.max() == 3 && self.numbers.indexOf(2) == 1",
        "self.name.find('[a-z]+') == 'ab' && 'a1b2'.findAll('[0-9]') == ['1', '2']",
        "self.?nested.?deep.orValue(0) == 4 && !self.?free.hasValue()",
        "sets.contains([1, 2], [1]) && [1, 2].all(i, v, v == i + 1)",
        "'%s-%d'.format([self.name, self.min]) == 'ab-c-1'",
        "cel.bind(x, self.min, x + x) == 2",
    ],
)
def test_a_rule_that_holds_says_nothing(rule: str) -> None:
    assert failures(rule) == []


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("self.max < self.min", "spec: Invalid value: failed rule: self.max < self.min"),
        ({"rule": "self.max < self.min", "message": "max first"}, "spec: Invalid value: max first"),
        ({"rule": "self.max < self.min", "messageExpression": "'max is ' + string(self.max)"}, "spec: Invalid value: max is 2"),
        ({"rule": "self.max < self.min", "messageExpression": "self.items[9].n", "message": "plan B"}, "spec: Invalid value: plan B"),
        ({"rule": "self.max < self.min", "reason": "FieldValueRequired", "message": "m"}, "spec: Required value: m"),
        ({"rule": "self.max < self.min", "reason": "FieldValueForbidden", "message": "m"}, "spec: Forbidden: m"),
        ({"rule": "self.max < self.min", "fieldPath": ".max", "message": "m"}, "spec.max: Invalid value: m"),
        ("self.items[9].n == 'x'", "spec: Invalid value: index out of bounds: 9 evaluating rule: self.items[9].n == 'x'"),
        ("self.min / 0 == 1", "spec: Invalid value: division by zero evaluating rule: self.min / 0 == 1"),
        ("self.size > 3", "spec: Invalid value: 'no such overload': call arguments did not match a supported operator, function or macro signature for rule: self.size > 3"),
    ],
)  # fmt: skip
def test_a_rule_that_does_not_hold_says_why(rule: Object | str, expected: str) -> None:
    assert failures(rule) == [expected]


def test_a_missing_field_fails_the_rule_that_needs_it() -> None:
    assert failures("self.min > 0", {}) == ["spec: Invalid value: no such key: min evaluating rule: self.min > 0"]


def test_rules_stand_at_every_level_and_see_only_their_own_part() -> None:
    word = {"type": "string", "x-kubernetes-validations": [{"rule": "self.size() < 3", "message": "too wordy"}]}
    schema = {
        "type": "object",
        "x-kubernetes-validations": [{"rule": "self.metadata.name == self.spec.word", "message": "names differ"}],
        "properties": {
            "spec": {
                "type": "object",
                "properties": {
                    "word": word,
                    "words": {"type": "array", "items": word},
                    "map": {"type": "object", "additionalProperties": word},
                },
            }
        },
    }
    assert check_structural(schema) == []
    obj = {"metadata": {"name": "x"}, "spec": {"word": "long", "words": ["a", "long"], "map": {"k": "long"}}}
    assert [error.message for error in compile_schema(schema).validate(obj)] == [
        "<nil>: Invalid value: names differ",
        'spec.word: Invalid value: "long": too wordy',
        'spec.words[1]: Invalid value: "long": too wordy',
        'spec.map[k]: Invalid value: "long": too wordy',
    ]


def test_rules_wait_until_the_types_are_right() -> None:
    assert failures("self.min <= self.max", {"min": "x", "max": 1})[1:] == [
        "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; "
        "correct the existing errors to complete validation"
    ]


# --- transition rules ------------------------------------------------------------------------------------------------


def test_a_transition_rule_is_evaluated_on_updates_only() -> None:
    rule = {"rule": "self.min >= oldSelf.min", "message": "min may not shrink"}
    assert failures(rule, {"min": 1}) == []
    assert failures(rule, {"min": 1}, {"min": 2}) == ["spec: Invalid value: min may not shrink"]
    assert failures(rule, {"min": 3}, {"min": 2}) == []


def test_optional_old_self_is_evaluated_on_creates_too() -> None:
    rule = {
        "rule": "oldSelf.hasValue() ? oldSelf.value().min <= self.min : self.min == 0",
        "optionalOldSelf": True,
        "message": "starts at 0 and grows",
    }
    assert failures(rule, {"min": 1}) == ["spec: Invalid value: starts at 0 and grows"]
    assert failures(rule, {"min": 0}) == []
    assert failures(rule, {"min": 1}, {"min": 0}) == []
    assert failures(rule, {"min": 1}, {"min": 2}) == ["spec: Invalid value: starts at 0 and grows"]


def test_other_rules_are_not_raised_again_for_what_did_not_change() -> None:
    rule = {"rule": "self.min <= self.max", "message": "m"}
    broken = {"min": 3, "max": 1}
    assert failures(rule, broken, broken) == []
    assert failures(rule, {**broken, "name": "new"}, broken) == ["spec: Invalid value: m"]


def test_items_of_a_keyed_list_are_compared_with_their_former_selves() -> None:
    items = {
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["k"],
        "items": {
            "type": "object",
            "required": ["k"],
            "properties": {"k": {"type": "string"}, "v": {"type": "integer"}},
            "x-kubernetes-validations": [{"rule": "self.v == oldSelf.v", "message": "v is immutable"}],
        },
    }
    schema = {"type": "object", "properties": {"items": items}}
    assert check_structural(schema) == []
    old = {"items": [{"k": "a", "v": 1}, {"k": "b", "v": 2}]}
    new = {"items": [{"k": "c", "v": 9}, {"k": "b", "v": 3}, {"k": "a", "v": 1}]}
    assert [error.message for error in compile_schema(schema).validate(new, old)] == [
        "items[1]: Invalid value: v is immutable"
    ]


# --- rules that refuse the CRD ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "field", "word"),
    [
        ({"rule": "self.mni > 1"}, "rule", "undefined field 'mni'"),
        ({"rule": "self.items.all(i, i.nope == 'a')"}, "rule", "undefined field 'nope'"),
        ({"rule": "has(self.nested.nope)"}, "rule", "undefined field 'nope'"),
        ({"rule": "self.free.anything == 1"}, "rule", "undefined field 'anything'"),
        ({"rule": "self.min > 'a'"}, "rule", "found no matching overload for '_>_' applied to '(int, string)'"),
        ({"rule": "self.min +"}, "rule", "Syntax error"),
        ({"rule": "nonsense(self.min)"}, "rule", "undeclared reference to 'nonsense'"),
        ({"rule": "self.min"}, "rule", "cel expression must evaluate to a bool"),
        ({"rule": " "}, "rule", "rule is not specified"),
        (
            {"rule": "true", "messageExpression": "1"},
            "messageExpression",
            "messageExpression must evaluate to a string",
        ),
        ({"rule": "true", "message": " "}, "message", "must be non-empty if specified"),
        ({"rule": "true\n||\nfalse"}, "message", "message must be specified if rule contains line breaks"),
        ({"rule": "true", "reason": "Because"}, "reason", "supported values"),
        ({"rule": "true", "fieldPath": ".nope"}, "fieldPath", "must be a valid path"),
        ({"rule": "true", "optionalOldSelf": True}, "optionalOldSelf", "may not be set if oldSelf is not used in rule"),
    ],
)
def test_a_rule_that_cannot_work_refuses_the_crd(rule: Object, field: str, word: str) -> None:
    [problem] = check_structural(schema_with(rule))
    assert problem.startswith(f"openAPIV3Schema.properties[spec].x-kubernetes-validations[0].{field}: ")
    assert word in problem


def test_old_values_cannot_be_asked_for_where_they_have_no_counterpart() -> None:
    rule = {"rule": "self == oldSelf"}
    items = {"type": "array", "items": {"type": "string", "x-kubernetes-validations": [rule]}}
    [problem] = check_structural({"type": "object", "properties": {"l": items}})
    assert problem == (
        'openAPIV3Schema.properties[l].items.x-kubernetes-validations[0].rule: Invalid value: "self == oldSelf": '
        "oldSelf cannot be used on the uncorrelatable portion of the schema within openAPIV3Schema.properties[l]"
    )
