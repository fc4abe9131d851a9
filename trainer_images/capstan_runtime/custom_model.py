"""A user's own model, as far as it is the same in every framework: found, called, and its answer looked at.

Whatever goes wrong in code that is not ours becomes one line that names the field, the value, the rule and the fix; its
traceback is in the log.
"""

import importlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from blake3 import blake3

from capstan_runtime.checkpoint.safetensors import TYPES
from capstan_runtime.contract.custom_model import Custom
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.engine import Array
from capstan_runtime.errors import ConfigError
from capstan_runtime.model_spec import Given, ParameterSpec

_FIELD = "spec.model.custom"
TRIAL_SAMPLES = 2
"""Of the batch that a new module is tried with."""


def make_module(custom: Custom, data: DataSpec, kind: type[Any], **given: Any) -> Any:
    """What the factory makes of `data`, `given` and the config: an instance of `kind`. Raises ConfigError."""
    factory = _find(custom.target)
    try:
        module = factory(data, **given, **custom.config)
    except Exception as error:
        raise ConfigError(
            f"{_FIELD}: {custom.target} raised {type(error).__name__}: {_first_line(error)}; "
            "correct config, or the factory"
        ) from error
    if not isinstance(module, kind):
        raise ConfigError(
            f"{_FIELD}.target: {custom.target} returned a value of type {type(module).__name__}; return a "
            f"{kind.__module__.partition('.')[0]} {kind.__name__}"
        )
    return module


def _find(target: str) -> Callable[..., Any]:
    name, _, path = target.partition(":")
    try:
        found: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(
                f"{_FIELD}.target: {target}: there is no module {error.name} in the pod; put it into workers.image, or "
                "mount it and set PYTHONPATH in workers.podPatch"
            ) from error
        raise ConfigError(
            f"{_FIELD}.target: {target}: importing it needs {error.name}, which is not installed; add it to "
            "workers.image"
        ) from error
    except Exception as error:
        raise ConfigError(
            f"{_FIELD}.target: {target}: importing it raised {type(error).__name__}: {_first_line(error)}; correct it"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{_FIELD}.target: {target}: {name} has no {path}; correct the name")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{_FIELD}.target: {target}: is of type {type(found).__name__}; name a function or a class")
    factory: Callable[..., Any] = found
    return factory


def parameter_spec(name: str, shape: Sequence[int]) -> ParameterSpec:
    """Of one of the module's own parameters: matrices and kernels decay, gains and biases do not."""
    return ParameterSpec(name, tuple(shape), Given(), decays=len(shape) > 1)


def constant_spec(name: str, dtype: str, shape: Sequence[int]) -> ParameterSpec:
    """Of what the module holds beside parameters, of numpy's `dtype`. Raises ConfigError if no checkpoint holds it."""
    if dtype not in TYPES:
        raise ConfigError(
            f"{_FIELD}: {name} is of type {dtype}, which checkpoints cannot hold; use one of {', '.join(TYPES)}"
        )
    return ParameterSpec(name, tuple(shape), Given(), decays=False, is_trained=False, is_constant=True)


def require_parameters(table: Sequence[ParameterSpec]) -> None:
    """Raises ConfigError when there is nothing to train, or something without an element."""
    if not any(spec.is_trained for spec in table):
        raise ConfigError(f"{_FIELD}: the module has no parameters; there is nothing to train")
    empty = next((spec.name for spec in table if math.prod(spec.shape) == 0), None)
    if empty is not None:
        raise ConfigError(f"{_FIELD}: {empty} has no element; leave it out")


def trial_failed(error: Exception, data: DataSpec) -> ConfigError:
    """Of a module that cannot be called with what it is to be trained on."""
    return ConfigError(
        f"{_FIELD}: the module, called with {TRIAL_SAMPLES} {data} of spec.data, raised {type(error).__name__}: "
        f"{_first_line(error)}; correct it"
    )


def require_logits(found: Any, data: DataSpec) -> None:
    """Raises ConfigError unless the answer to a trial has the shape of logits."""
    places = data.input_shape if data.kind == "tokens" else ()
    wanted = (TRIAL_SAMPLES, *places, data.outputs)
    shape = tuple(getattr(found, "shape", ()))
    if shape != wanted:
        what = f"an array {list(shape)}" if hasattr(found, "shape") else f"a {type(found).__name__}"
        raise ConfigError(
            f"{_FIELD}: the module returned {what} for {TRIAL_SAMPLES} {data}; return logits {list(wanted)}"
        )


def changes_as_it_is_called(name: str) -> ConfigError:
    """Of a buffer, or a variable that is no parameter."""
    return ConfigError(
        f"{_FIELD}: {name} changes when the module is called, so its value would depend on the number of workers; use "
        "a layer without running statistics, such as GroupNorm or LayerNorm"
    )


def require_same_start(held: Iterable[tuple[str, Array]], exchange: Callable[[bytes], Sequence[bytes]]) -> None:
    """Raises ConfigError unless all ranks begin with the same: `held` are names and values of all that their modules
    hold, parameters or not. Collective."""
    digest = blake3(max_threads=blake3.AUTO)
    for name, value in held:
        digest.update(f"{name} {value.shape} ".encode())
        digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    answers = exchange(digest.digest())
    for rank, answer in enumerate(answers):
        if answer != answers[0]:
            raise ConfigError(
                f"{_FIELD}: rank {rank} begins with other weights or constants than rank 0; let the factory draw "
                "numbers from its framework's generator alone, which is seeded by training.seed"
            )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")
