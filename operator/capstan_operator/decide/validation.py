"""A refused spec, explained: one line per field with its value, the rule and the fix."""

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from capstan_operator.api.training_job import TrainingJobSpec
from capstan_operator.build.children import longest_job_name, pod_name
from capstan_operator.build.pod_parts import GPU

VALUE_LENGTH = 60
"""A value longer than this is cut in messages."""

# What a value must be, and what to do, by pydantic's error type. {braces} are filled from the error's context.
_RULES = {
    "missing": "is missing; add it",
    "greater_than_equal": "must be at least {ge}; raise it",
    "greater_than": "must be above {gt}; raise it",
    "less_than_equal": "must be at most {le}; lower it",
    "less_than": "must be below {lt}; lower it",
    "literal_error": "must be one of {expected}; choose one",
    "int_type": "must be a whole number; write one without quotes",
    "float_type": "must be a number; write one without quotes",
    "bool_type": "must be true or false; write it without quotes",
    "string_type": "must be text; put it in quotes",
    "dict_type": "must be an object; write key: value lines",
    "model_type": "must be an object; write key: value lines",
    "list_type": "must be a list; write one entry per line, each after a dash",
    "string_pattern_mismatch": "must match {pattern}; correct it",
    "string_too_short": "must have at least {min_length} characters; fill it in",
    "too_short": "must have at least {min_length} entries; add some",
    "too_long": "must have at most {max_length} entries; remove some",
    "finite_number": "must be a finite number; write one",
}


def explain(error: ValidationError, spec: type[BaseModel] = TrainingJobSpec) -> tuple[str, ...]:
    """`spec.<field>: <value> <rule>; <fix>` for every error of reading a `spec`, sorted; no line twice."""
    details = error.errors(include_url=False)
    # Values and names of fields are the user's, and may have line ends in them.
    return tuple(sorted({" ".join(_explain_one(detail, spec).splitlines()) for detail in details}))


def spec_problems(name: str, spec: TrainingJobSpec, namespace: str) -> list[str]:
    """What is wrong with a spec that the models cannot know: the job's name and namespace, and who sets which
    resource."""
    problems = []
    longest = longest_job_name(spec.workers.max)
    if len(name) > longest:
        problems.append(
            f"metadata.name: {name} has {len(name)} characters; pods such as "
            f"{pod_name('<name>', spec.workers.max - 1, 0)} leave room for {longest}; shorten it"
        )
    if GPU in spec.workers.resources:
        problems.append(
            f"spec.workers.resources[{GPU}]: {spec.workers.resources[GPU]} comes from workers.gpus; "
            f"remove it and set workers.gpus"
        )
    models = spec.compression.models if spec.compression is not None else {}
    for field, model in models.items():
        if model.checkpoint is not None and not model.checkpoint.run.startswith(f"{namespace}/"):
            problems.append(
                f"spec.compression.{field}.checkpoint.run: {model.checkpoint.run} is of another namespace than "
                f"{namespace}; name a run of {namespace}, or a registered version (registry)"
            )
    return problems


def _explain_one(detail: ErrorDetails, spec: type[BaseModel]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"])
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "value_error":
        # Our own validators name the field themselves where it lies deeper: "workers: min 3 is above max 2; lower min".
        text = str(context["error"])
        field, colon, rest = text.partition(": ")
        is_field = colon and field.replace(".", "").isalpha() and not path
        return f"spec.{field}: {rest}" if is_field else f"spec{path}: {text}"
    if kind == "extra_forbidden":
        return f"spec{path}: is no field of this version; {_suggest(detail['loc'], spec)}"
    if kind == "missing":
        return f"spec{path}: {_RULES[kind]}"
    rule = _RULES.get(kind)
    explained = rule.format(**context) if rule else f"{detail['msg']}; correct it"
    return f"spec{path}: {_shown(detail['input'])} {explained}"


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= VALUE_LENGTH else f"{text[: VALUE_LENGTH - 1]}…"


def _suggest(location: tuple[int | str, ...], spec: type[BaseModel]) -> str:
    known = _fields_at(location[:-1], spec)
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"did you mean {close[0]}?" if close else f"remove it, or use one of {', '.join(known)}"


def _fields_at(location: Iterable[int | str], model: type[BaseModel]) -> list[str]:
    """The camelCase names of the fields of the object at `location` in a document of `model`."""
    for part in location:
        if isinstance(part, int):
            continue
        field = next(field for name, field in model.model_fields.items() if (field.alias or name) == part)
        model = next(candidate for candidate in _models_in(field.annotation))
    return [field.alias or name for name, field in model.model_fields.items()]


def _models_in(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
