"""A run that begins as the best approximation of a model that is trained already, with matrices of low rank."""

from collections.abc import Iterable
from functools import cached_property

import numpy as np
import numpy.typing as npt

from capstan_runtime.checkpoint.digest import digest_of, name_of
from capstan_runtime.checkpoint.layout import ORIGIN
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.context import TrainContext
from capstan_runtime.contract.run_config import RunConfig
from capstan_runtime.engine import Array, Stateful, Trained
from capstan_runtime.errors import ConfigError
from capstan_runtime.low_rank import factors_of, is_factored, model_table, nearest_factors, table_of
from capstan_runtime.model_signature import rank_of
from capstan_runtime.model_spec import STEP_NAME, ParameterSpec, parameter_table, read_tensor, served_kind
from capstan_runtime.trained import find_trained
from capstan_runtime.updates import state_kinds
from capstan_runtime.voice import Voice

_FIELD = "spec.compression.lowRank.from"
Values = npt.NDArray[np.float32]


def begin_from_trained(context: TrainContext, state: Stateful, store: Store, voice: Voice) -> Trained | None:
    """The model that the run begins from, once its factors are in `state`, which is that of no step; None: it begins by
    chance. `store`: the run's own. Collective, and the same on every rank.

    Raises as `find_trained` does, and ConfigError for a model of another architecture, or if ranks come to different
    factors.
    """
    low_rank = context.run.compression.low_rank if context.run.compression is not None else None
    if low_rank is None or low_rank.origin is None:
        return None
    origin = find_trained(low_rank.origin, context, store, voice, ORIGIN, _FIELD)
    require_same_architecture(origin, context)
    factors = Factors(origin, context)
    _require_same(factors.digest, state)
    state.import_state(factors)
    return origin


class Factors:
    """The state before the first step of a run that begins from a trained model, as a `TensorSource`."""

    def __init__(self, origin: Trained, context: TrainContext) -> None:
        """`origin` has the architecture of the run. Nothing is read yet."""
        run, rank = context.run, rank_of(context.run)
        assert rank is not None
        self._rank = rank
        self._source, self._kind = origin.tensors, served_kind(origin.tensors)
        self._whole = parameter_table(run.model, context.data)
        self._shapes = _state_shapes(run, model_table(run.model, context.data, rank))
        self._firsts = {kind.name: kind.first for kind in state_kinds(run.optimizer, run.training)}

    def names(self) -> Iterable[str]:
        return self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def read(self, name: str) -> Array:
        if name == STEP_NAME:
            return np.zeros((), np.int64)
        shape = self._shapes[name]
        folder, _, rest = name.partition("/")
        if folder != "optimizer":  # a parameter, or its average, which begins as it
            return self._values[rest]
        kind, _, parameter = rest.partition("/")
        first = self._firsts[kind]
        return self._values[parameter] if first is None else np.full(shape, first, np.float32)

    def read_range(self, name: str, start: int, stop: int) -> Array:
        return self.read(name).reshape(-1)[start:stop]

    @property
    def digest(self) -> str:
        """Of all values, to the last bit."""
        return name_of(digest_of(b"".join(digest_of(self._values[name].tobytes()) for name in sorted(self._values))))

    @cached_property
    def _values(self) -> dict[str, Values]:
        """By parameter. What is served of a model is what its successor begins from."""
        found: dict[str, Values] = {}
        for spec in self._whole:
            read = read_tensor(self._source, spec.tensor_name(self._kind), spec.shape)
            whole = np.ascontiguousarray(read, np.float32)
            if not is_factored(spec, self._rank):
                found[spec.name] = whole
                continue
            parts = factors_of(spec, self._rank)
            values = nearest_factors(spec, whole, self._rank)
            found.update({part.name: value for part, value in zip(parts, values, strict=True)})
        return found


def require_same_architecture(origin: Trained, context: TrainContext) -> None:
    """Raises ConfigError unless the parameters of `origin` are those that the run would have with whole matrices."""
    if origin.signature.low_rank is not None:
        raise ConfigError(f"{_FIELD}: is of rank {origin.signature.low_rank} itself; name the model that it came from")
    its = {spec.name: spec.shape for spec in table_of(origin.signature)}
    ours = {spec.name: spec.shape for spec in parameter_table(context.run.model, context.data)}
    for name in sorted({*its, *ours}):
        if its.get(name) != ours.get(name):
            raise ConfigError(
                f"{_FIELD}: has {name} of {_shown(its.get(name))}, and spec.model and spec.data of "
                f"{_shown(ours.get(name))}; set spec.model to its architecture, {origin.signature.architecture}"
            )


def _state_shapes(run: RunConfig, table: Iterable[ParameterSpec]) -> dict[str, tuple[int, ...]]:
    """Of all that a checkpoint of the run has, by name."""
    shapes: dict[str, tuple[int, ...]] = {STEP_NAME: ()}
    for spec in table:
        for kind in state_kinds(run.optimizer, run.training):
            shapes[spec.tensor_name(kind.name)] = () if kind.per_parameter else spec.shape
        shapes[spec.tensor_name()] = spec.shape  # last: of a buffer there may be nothing else
    return shapes


def _require_same(digest: str, state: Stateful) -> None:
    """Collective."""
    answers = [answer.decode() for answer in state.exchange(digest.encode())]
    for rank, answer in enumerate(answers):
        if answer != answers[0]:
            raise ConfigError(
                f"{_FIELD}: rank {rank} comes to other factors than rank 0, since its processor rounds otherwise; let "
                "all workers run on machines of one kind (workers.nodeSelector)"
            )


def _shown(shape: tuple[int, ...] | None) -> str:
    return "no shape" if shape is None else f"shape {shape}"
