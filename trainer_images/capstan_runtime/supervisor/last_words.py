"""The final State in the 4,096 bytes that Kubernetes keeps of a termination message."""

from collections.abc import Iterator

from capstan_runtime.contract.state import Exit, State

LIMIT_BYTES = 4096

_CUTS = (
    # (list, entries that may stay), what matters least first.
    ("last_lines", 3),
    ("notes", 0),
    ("stack", 4),
    ("injected", 5),
    ("quarantined", 5),
    ("last_lines", 0),
    ("quarantined", 0),
    ("injected", 0),
    ("stack", 0),
)


def fit(state: State, limit_bytes: int = LIMIT_BYTES) -> bytes:
    """The state as JSON of at most `limit_bytes`; what matters least goes first: what is kept for others, facts of
    the data, old lines, notes, outer frames, old faults and quarantines, then metrics, times and the end of long
    messages."""
    for smaller in _ever_smaller(state):
        data = smaller.model_dump_json(by_alias=True, exclude_none=True).encode()
        if len(data) <= limit_bytes:
            return data
    raise ValueError(f"a State of only required fields has more than {limit_bytes} bytes")


def _ever_smaller(state: State) -> Iterator[State]:
    yield state
    for field in ("keep_roots", "data"):
        state = state.model_copy(update={field: None})
        yield state
    for name, kept in _CUTS:
        while len(entries := _entries(state, name)) > kept:
            # The stack begins with the innermost frame; all others end with the newest entry.
            state = _replaced(state, name, entries[:-1] if name == "stack" else entries[1:])
            yield state
    for field in ("system", "metrics", "seconds", "timeline"):
        state = state.model_copy(update={field: {}})
        yield state
    if state.exit is not None:
        yield _replaced(state, "message", state.exit.message[:200])


def _entries(state: State, name: str) -> list[object]:
    if name not in Exit.model_fields:
        return list(getattr(state, name))
    return list(getattr(state.exit, name)) if state.exit is not None else []


def _replaced(state: State, name: str, value: object) -> State:
    if name not in Exit.model_fields:
        return state.model_copy(update={name: value})
    assert state.exit is not None
    return state.model_copy(update={"exit": state.exit.model_copy(update={name: value})})
