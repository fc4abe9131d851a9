"""The two model shapes of everything that crosses a process or is stored: a record, and a choice of one."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Record(BaseModel):
    """An immutable record. JSON is camelCase, Python is snake_case, unknown fields are errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_alias=True,
        validate_by_name=True,
    )

    @classmethod
    def parse(cls, document: Any) -> Self:
        """The record a JSON document describes; only the camelCase names count. Raises ValidationError."""
        return cls.model_validate(document, by_alias=True, by_name=False)

    def document(self) -> dict[str, Any]:
        """The JSON document of this record, camelCase, without fields that are None."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def cel(*rules: tuple[str, str]) -> ConfigDict:
    """Configuration that puts CEL rules on a model's schema: (rule, message expression) each.

    They are the twins of the model's validators, which stand beside them: the same verdict at `kubectl apply`.
    """
    validations: list[Any] = [{"rule": rule, "messageExpression": message} for rule, message in rules]
    return ConfigDict(json_schema_extra={"x-kubernetes-validations": validations})


def once(field: str, key: str = "") -> tuple[str, str]:
    """The twin of `require_once` in CEL: no entry of list `field` is there twice. `key`: they are told by that."""
    dot = f".{key}" if key else ""
    others = f"self.{field}.exists_one(other, other{dot} == one{dot})"
    first = f"string(self.{field}.filter(one, !{others})[0]{dot})"
    return (
        f"self.{field}.all(one, {others})",
        f"'{field}: holds ' + {first} + ' twice, and figures are told apart by it; remove one of them'",
    )


def require_once(**lists: Sequence[Any]) -> None:
    """Raises ValueError, which names list and entry, when an entry of one of `lists` is there twice."""
    for field, entries in lists.items():
        twice = next((one for one in entries if entries.count(one) > 1), None)
        if twice is not None:
            shown = f"{twice:.12g}" if isinstance(twice, float) else twice
            raise ValueError(f"{field}: holds {shown} twice, and figures are told apart by it; remove one of them")


def rules_of(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """The CEL rules of `model`, which a model that extends it would otherwise lose."""
    for rule in model.model_json_schema(by_alias=True).get("x-kubernetes-validations", []):
        yield rule["rule"], rule["messageExpression"]


def _exactly_one_rule(schema: dict[str, Any]) -> None:
    """The twin of `OneOf._exactly_one`. Not minProperties and maxProperties: those count, and do not say what."""
    names = list(schema["properties"])
    given = "[" + ", ".join(f"has(self.{name}) ? '{name}' : ''" for name in names) + "].filter(name, name != '')"
    message = f"'got ' + (size({given}) == 0 ? 'none' : {given}.join(', ')) + ': set exactly one of {', '.join(names)}'"
    schema["x-kubernetes-validations"] = [{"rule": f"size({given}) == 1", "messageExpression": message}]


class OneOf(Record):
    """A union in the Kubernetes way: an object of which exactly one key is set.

    `optimizer: {adamw: {learningRate: 0.001}}`. Every field of a subclass is optional and defaults to None.
    """

    model_config = ConfigDict(json_schema_extra=_exactly_one_rule)

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        fields = {name: field.alias or name for name, field in type(self).model_fields.items()}
        given = [alias for name, alias in fields.items() if getattr(self, name) is not None]
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise ValueError(f"got {found}: set exactly one of {', '.join(fields.values())}")
        return self

    @property
    def kind(self) -> str:
        """The camelCase name of the one key that is set."""
        return next(
            field.alias or name for name, field in type(self).model_fields.items() if getattr(self, name) is not None
        )

    @property
    def value(self) -> Any:
        """The record under the one key that is set."""
        return next(value for name in type(self).model_fields if (value := getattr(self, name)) is not None)
