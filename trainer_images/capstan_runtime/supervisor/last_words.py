"""The final State in the 4,096 bytes that Kubernetes keeps of a termination message."""

from collections.abc import Iterator

from capstan_runtime.contract.state import State

LIMIT_BYTES = 4096


def fit(state: State, limit_bytes: int = LIMIT_BYTES) -> bytes:
    """The state as JSON of at most `limit_bytes`; what matters least goes first: old lines, then old quarantines,
    then long texts, then metrics."""
    for smaller in _ever_smaller(state):
        data = smaller.model_dump_json(by_alias=True, exclude_none=True).encode()
        if len(data) <= limit_bytes:
            return data
    raise ValueError(f"a State of only required fields has more than {limit_bytes} bytes")


def _ever_smaller(state: State) -> Iterator[State]:
    yield state
    while state.exit is not None and state.exit.last_lines:
        end = state.exit.model_copy(update={"last_lines": state.exit.last_lines[1:]})
        state = state.model_copy(update={"exit": end})
        yield state
    while state.quarantined:
        state = state.model_copy(update={"quarantined": state.quarantined[1:]})
        yield state
    if state.exit is not None:
        state = state.model_copy(update={"exit": state.exit.model_copy(update={"message": state.exit.message[:200]})})
        yield state
    yield state.model_copy(update={"metrics": {}})
