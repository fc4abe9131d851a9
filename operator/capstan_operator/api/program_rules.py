"""What a TrainingJob with a program of the user's own may say: each rule as a validator, and as its twin in CEL.

A program brings its own model, data, optimizer and arithmetic. What is left to Capstan is how long it runs, on how many
workers, which samples make up a step, where it is saved, and what happens when something breaks.
"""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from capstan_runtime.contract.chaos import Fault
from capstan_runtime.contract.training import Training

if TYPE_CHECKING:
    from capstan_operator.api.training_job import TrainingJobSpec

Rule = tuple[str, str]
"""As `cel` takes it: expression, and the expression of its message."""

SHARED = ("training", "workers", "parallelism")
"""Of what a Run says, what holds for programs too, or what rules that do look at."""
_OF_TRAINING = ("steps", "global_batch_size", "virtual_ranks", "seed", "log_every_steps")
NOT_FOR_PROGRAMS = {
    "callbacks": "has(self.callbacks)",
    "compression": "has(self.compression)",
    "registerAs": "has(self.registerAs)",
    "recordSteps": "self.recordSteps",
    "parallelism": "has(self.parallelism)",
}
"""Of what else a TrainingJob says, what Capstan's own trainers do: whether it is given, in CEL."""
_INSIDE = (Fault.SLOW_RANK, Fault.SLOW_NETWORK, Fault.GPU_OUT_OF_MEMORY, Fault.DATA_STALL, Fault.NAN)
"""Faults that the trainers' own steps have to play."""

_NO_IMAGE = "program.framework: nothing says what the pods run in; set it, or workers.image"
_NO_DROPPING = (
    "recovery.numerical.nonFinite: ignore drops an update, and only the program makes updates; choose rewind or halt"
)
_NO_EPOCHS = "training.epochs: only the program knows how many steps that is; set steps"


def parts_of_trainers(run: type[BaseModel]) -> list[str]:
    """The camelCase names of what only Capstan's own trainers are told."""
    return [field.alias or name for name, field in run.model_fields.items() if name not in SHARED]


def needed_by_trainers(run: type[BaseModel]) -> list[str]:
    """Of these, what they cannot do without."""
    return [
        field.alias or name for name, field in run.model_fields.items() if name not in SHARED and field.is_required()
    ]


def program_rules(run: type[BaseModel], rules: Sequence[Rule]) -> Iterator[Rule]:
    """The CEL rules of a job that is either a `run` of Capstan's own trainers, with its `rules`, or a program."""
    needed, parts = needed_by_trainers(run), parts_of_trainers(run)
    is_whole = " && ".join(f"has(self.{name})" for name in needed)
    for rule, message in rules:
        is_for_trainers = re.search(rf"self\.({'|'.join(parts)})\b", rule) is not None
        yield (f"has(self.program) || !({is_whole}) || ({rule})" if is_for_trainers else rule), message
    missing = _named({name: f"!has(self.{name})" for name in needed})
    yield (
        f"has(self.program) || size({missing}) == 0",
        f"{missing}.join(', ') + ': missing; add what Capstan is to train, or set program'",
    )
    given_to_trainers = {**{name: f"has(self.{name})" for name in parts}, **NOT_FOR_PROGRAMS}
    for parent, given in (("", given_to_trainers), ("training.", _given_of_training())):
        names = _named(given)
        yield (
            f"!has(self.program) || size({names}) == 0",
            f"{names}.map(name, '{parent}' + name).join(', ') + ': the program decides that itself; remove it'",
        )
    yield "!has(self.program) || !has(self.training.epochs)", f"'{_NO_EPOCHS}'"
    yield "!has(self.program) || has(self.program.framework) || has(self.workers.image)", f"'{_NO_IMAGE}'"
    yield "!has(self.program) || self.recovery.numerical.nonFinite != 'ignore'", f"'{_NO_DROPPING}'"
    inside = "[" + ", ".join(f"'{fault}'" for fault in _INSIDE) + "]"
    yield (
        f"!has(self.program) || !self.chaos.exists(one, one.fault in {inside})",
        f"'chaos: ' + self.chaos.filter(one, one.fault in {inside})[0].name"
        " + ' happens inside the steps of a trainer, and this is a program; remove it'",
    )


def _named(conditions: dict[str, str]) -> str:
    """A CEL list of the names whose condition holds."""
    items = ", ".join(f"{condition} ? '{name}' : ''" for name, condition in conditions.items())
    return f"[{items}].filter(name, name != '')"


def _given_of_training() -> dict[str, str]:
    return {
        alias: f"has(self.training.{alias})" if field.default is None else f"self.training.{alias} != {_cel(field)}"
        for _, alias, field in _not_of_programs()
    }


def _not_of_programs() -> Iterator[tuple[str, str, FieldInfo]]:
    """Fields of `training` that say how a model is trained: name, camelCase name, and the field."""
    for name, field in Training.model_fields.items():
        if name not in (*_OF_TRAINING, "epochs"):
            yield name, field.alias or name, field


def _cel(field: FieldInfo) -> str:
    """The field's default in CEL. Raises TypeError for one that is no text, number, true or false."""
    default = field.default
    if isinstance(default, bool):
        return "true" if default else "false"
    if isinstance(default, str):
        return f"'{default}'"
    if isinstance(default, (int, float)):
        return repr(default)
    raise TypeError(f"training.{field.alias}: a default of {default!r} cannot be told from a value that was given")


def require_program_or_trainer(spec: "TrainingJobSpec", run: type[BaseModel]) -> None:
    """Raises ValueError unless the job is either a whole run of Capstan's own trainers, or a program."""
    given = [name for name in (*parts_of_trainers(run), *NOT_FOR_PROGRAMS) if _is_given(spec, name)]
    if spec.program is None:
        missing = [name for name in needed_by_trainers(run) if name not in given]
        if missing:
            raise ValueError(f"{', '.join(missing)}: missing; add what Capstan is to train, or set program")
        return
    given += [
        f"training.{alias}"
        for name, alias, field in _not_of_programs()
        if getattr(spec.training, name) != field.default
    ]
    if given:
        raise ValueError(f"{', '.join(given)}: the program decides that itself; remove it")
    if spec.training.epochs is not None:
        raise ValueError(_NO_EPOCHS)
    if spec.program.framework is None and spec.workers.image is None:
        raise ValueError(_NO_IMAGE)
    if spec.recovery.numerical.non_finite == "ignore":
        raise ValueError(_NO_DROPPING)
    for one in spec.chaos:
        if one.fault in _INSIDE:
            raise ValueError(
                f"chaos: {one.name} happens inside the steps of a trainer, and this is a program; remove it"
            )


def _is_given(spec: "TrainingJobSpec", alias: str) -> bool:
    name, field = next(
        (name, field) for name, field in type(spec).model_fields.items() if (field.alias or name) == alias
    )
    return bool(getattr(spec, name) != field.default)
