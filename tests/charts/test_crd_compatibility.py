"""Which new rules of a definition hold of all objects that the one before it took."""

import pytest

from tests.support.crd_compatibility import narrowed

OLD_RULE = "has(self.a) == self.b"


def definition(rules: list[str], properties: list[str], **more: object) -> dict[str, object]:
    schema = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in properties} | more,
        "required": ["a"],
        "x-kubernetes-validations": [{"rule": rule} for rule in rules],
    }
    version = {"name": "v1", "served": True, "schema": {"openAPIV3Schema": schema}}
    names = {"kind": "K", "plural": "ks"}
    return {"spec": {"group": "g", "scope": "Namespaced", "names": names, "versions": [version]}}


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        (OLD_RULE, True),
        (f"has(self.new) || ({OLD_RULE})", True),
        ("!has(self.new) || self.b", True),
        ("!(has(self.new) && has(self.new.inner) && self.b) || self.a", True),
        ("!has(self.filled.inner) || self.b", True),
        ("has(self.a) && !has(self.new)", True),
        ("size([has(self.a) ? 'a' : '', has(self.new) ? 'new' : ''].filter(name, name != '')) == 1", False),
        ("size([!has(self.a) ? 'a' : ''].filter(name, name != '')) == 0", True),
        ("self.b.contains('!has(self.new) || ')", False),
        ("!has(self.b) || self.a", False),
        ("has(self.new) || self.b", False),
        ("!has(self.filled.there) || self.b", False),
    ],
)
def test_a_new_rule_narrows_unless_it_is_about_what_no_stored_object_has(rule: str, holds: bool) -> None:
    filled = {"type": "object", "default": {"there": 1}}
    new = definition([OLD_RULE, rule], ["a", "b", "new"], filled=filled)
    assert (narrowed(definition([OLD_RULE], ["a", "b"]), new) == []) is holds
