"""The pages that are made of the definitions say all that these hold, once."""

from __future__ import annotations

from typing import Any

from scripts.reference_docs import Places, page

from tests.support.manifests import Document

PLACE = {
    "type": "object",
    "description": "Where.",
    "required": ["kind"],
    "properties": {
        "kind": {"type": "string", "description": "What for.", "enum": ["a", "b"]},
        "size": {"type": "integer", "description": "How large.", "minimum": 1, "maximum": 2000, "default": 3},
        "names": {
            "type": "array",
            "description": "Of whom.",
            "maxItems": 1,
            "items": {"type": "string", "minLength": 1},
        },
    },
    "x-kubernetes-validations": [
        {"rule": "true", "messageExpression": "'size ' + string(self.size) + ' is odd; add 1'"}
    ],
}


def _definition(spec: dict[str, Any]) -> Document:
    version = {
        "name": "v1",
        "schema": {
            "openAPIV3Schema": {
                "description": "A thing.",
                "properties": {
                    "spec": {"description": "What is asked.", "properties": spec},
                    "status": {
                        "description": "What is.",
                        "properties": {"here": PLACE | {"description": "Where now."}},
                    },
                },
            }
        },
        "additionalPrinterColumns": [
            {"name": "At", "jsonPath": ".status.here", "description": "Where.", "priority": 1}
        ],
    }
    names = {"kind": "Thing", "singular": "thing", "shortNames": ["th"], "categories": ["all"]}
    return {"spec": {"group": "x.dev", "names": names, "versions": [version]}}


def test_a_group_of_fields_is_written_out_where_it_comes_first_and_linked_from_the_others() -> None:
    text = page(_definition({"place": PLACE, "on": {"type": "boolean", "description": "Whether."}}), Places())
    assert text.partition("## Columns")[2].splitlines() == [
        " of kubectl get",
        "",
        "| column | field | what it says |",
        "| --- | --- | --- |",
        "| AT | `status.here` | Where. (with `-o wide`) |",
        "",
        "## spec",
        "",
        "What is asked.",
        "",
        "| field | type | default | what it is |",
        "| --- | --- | --- | --- |",
        "| `place` | object |  | Where. Fields: [spec.place](thing.md#specplace). |",
        "| `on` | boolean |  | Whether. |",
        "",
        "### spec.place",
        "",
        "Where.",
        "",
        "The API server refuses, with these words:",
        "",
        "* size … is odd; add 1",
        "",
        "| field | type | default | what it is |",
        "| --- | --- | --- | --- |",
        "| `kind` | string, one of `a`, `b` | required | What for. |",
        "| `size` | integer, 1 to 2,000 | `3` | How large. |",
        "| `names[]` | list of strings, at most 1 entry, each 1 character or more |  | Of whom. |",
        "",
        "## status",
        "",
        "What is.",
        "",
        "| field | type | default | what it is |",
        "| --- | --- | --- | --- |",
        "| `here` | object |  | Where now. Fields: [spec.place](thing.md#specplace). |",
    ]


def test_rules_that_say_the_same_of_several_fields_are_one() -> None:
    fixed = [{"rule": "true", "message": f"{name}: cannot change; make a new one"} for name in ("a", "b")]
    definition = _definition({"on": {"type": "boolean", "description": "Whether."}})
    spec = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["x-kubernetes-validations"] = [*fixed, {"rule": "true", "message": "c is odd"}]
    assert [line for line in page(definition, Places()).splitlines() if line.startswith("* ")] == [
        "* a, b: cannot change; make a new one",
        "* c is odd",
        "* size … is odd; add 1",
    ]
