"""A run that begins as the best approximation of a model that is trained already, with matrices of low rank."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from capstan_runtime.activity import Activity
from capstan_runtime.checkpoint.layout import ORIGIN
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.context import TrainContext
from capstan_runtime.contract.run_config import RunConfig
from capstan_runtime.contract.state import Section
from capstan_runtime.engine import Array, Stateful, Trained
from capstan_runtime.errors import ConfigError
from capstan_runtime.low_rank import factors_of, is_factored, model_table, nearest_factors, table_of
from capstan_runtime.model_signature import rank_of
from capstan_runtime.model_spec import STEP_NAME, ParameterSpec, parameter_table, read_tensor, served_kind
from capstan_runtime.parallel.star import MOST_BYTES
from capstan_runtime.trained import find_trained
from capstan_runtime.updates import state_kinds
from capstan_runtime.voice import Voice

_FIELD = "spec.compression.lowRank.from"
Values = npt.NDArray[np.float32]


def begin_from_trained(
    context: TrainContext, state: Stateful, store: Store, voice: Voice, activity: Activity
) -> Trained | None:
    """The model that the run begins from, once its factors are in `state`, which is that of no step; None: it begins by
    chance. `store`: the run's own. Collective, and the same on every rank; `activity` shows each matrix.

    Raises as `find_trained` does, and ConfigError for a model of another architecture.
    """
    low_rank = context.run.compression.low_rank if context.run.compression is not None else None
    if low_rank is None or low_rank.origin is None:
        return None
    origin = find_trained(low_rank.origin, context, store, voice, ORIGIN, _FIELD)
    require_same_architecture(origin, context)
    before = activity.enter(Section.FACTORS)
    factors = Factors(origin, context, state.exchange, lambda: activity.enter(Section.FACTORS))
    state.import_state(factors)
    activity.enter(before)
    return origin


class Factors:
    """The state before the first step of a run that begins from a trained model, as a `TensorSource`."""

    def __init__(
        self,
        origin: Trained,
        context: TrainContext,
        exchange: Callable[[bytes], list[bytes]],
        show: Callable[[], object] = lambda: None,
    ) -> None:
        """`origin` has the architecture of the run. Each rank finds the factors of its share of the matrices, and they
        are handed round, so that all have the same to the last bit, whatever their processors. Collective; `show` is
        called before each. Raises as `read_tensor` does, and PeerLost."""
        run, rank = context.run, rank_of(context.run)
        assert rank is not None
        self._rank = rank
        self._source, self._kind = origin.tensors, served_kind(origin.tensors)
        self._shapes = _state_shapes(run, model_table(run.model, context.data, rank))
        self._firsts = {kind.name: kind.first for kind in state_kinds(run.optimizer, run.training)}
        self._values: dict[str, Values] = {}
        """By parameter. What is served of a model is what its successor begins from."""
        whole = parameter_table(run.model, context.data)
        for spec in whole:
            if not is_factored(spec, rank):
                show()
                self._values[spec.name] = self._read(spec)
        # Those of one round are of about one size: none waits for long.
        factored = sorted((spec for spec in whole if is_factored(spec, rank)), key=_cost, reverse=True)
        for at in range(0, len(factored), context.membership.world):
            show()
            shared = factored[at : at + context.membership.world]
            self._values.update(self._found_together(shared, context.membership.rank, exchange))

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

    def _found_together(
        self, shared: Sequence[ParameterSpec], rank: int, exchange: Callable[[bytes], list[bytes]]
    ) -> Iterator[tuple[str, Values]]:
        """The factors of all, of which each rank finds those of one, by name. Collective."""
        mine = b""
        if rank < len(shared):
            spec = shared[rank]
            mine = b"".join(factor.tobytes() for factor in nearest_factors(spec, self._read(spec), self._rank))
        parts = [factors_of(spec, self._rank) for spec in shared]
        most = max(first.size + second.size for first, second in parts) * np.dtype(np.float32).itemsize
        sent = [exchange(mine[start : start + MOST_BYTES]) for start in range(0, most, MOST_BYTES)]
        for place, (first, second) in enumerate(parts):
            flat = np.frombuffer(bytearray().join(piece[place] for piece in sent), np.float32)
            yield first.name, flat[: first.size].reshape(first.shape)
            yield second.name, flat[first.size :].reshape(second.shape)

    def _read(self, spec: ParameterSpec) -> Values:
        read = read_tensor(self._source, spec.tensor_name(self._kind), spec.shape)
        return np.ascontiguousarray(read, np.float32)


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


def _cost(spec: ParameterSpec) -> int:
    """About how long its factors take to be found, in no unit."""
    several, (outputs, *inputs) = spec.shape[: spec.matrix_dims], spec.shape[spec.matrix_dims :]
    size = math.prod(inputs)
    return math.prod(several) * outputs * size * min(outputs, size)


def _shown(shape: tuple[int, ...] | None) -> str:
    return "no shape" if shape is None else f"shape {shape}"
