"""Before the world forms: a rank whose data is there waits for those that still copy theirs.

Joining has a deadline that no framework extends, and a copy has none for as long as it goes on: each pod's supervisor
ends one that does not. Only data in buckets is copied, so nobody else asks.
"""

import http.client
import time
from collections.abc import Callable

from pydantic import ValidationError

from capstan_runtime.context import JobContext
from capstan_runtime.contract.state import Phase, State
from capstan_runtime.restore import read_token

_AGAIN_SECONDS = 0.5
_ANSWER_SECONDS = 5.0

Ask = Callable[[str, str], State | None]
"""What the supervisor at an address says to who shows a token; None: nothing that can be understood."""


def await_data_of_peers(context: JobContext, alive: Callable[[], None], ask: Ask | None = None) -> None:
    """Returns when no peer is known to copy data any more. One of whose trainer nothing is known yet is waited for as
    long as a world may take to form. `alive` is called now and then meanwhile."""
    membership, token = context.membership, read_token(context.environ)
    peers = [peer for rank, peer in enumerate(membership.peers) if rank != membership.rank]
    if token is None:
        return
    began = time.monotonic()
    while peers:
        alive()
        is_early = time.monotonic() - began < context.run.deadlines.form
        states = [(peer, (ask or _state_of)(peer, token)) for peer in peers]
        peers = [peer for peer, state in states if _is_awaited(state, membership.fence, is_early)]
        if peers:
            time.sleep(_AGAIN_SECONDS)


def _is_awaited(state: State | None, fence: int, is_early: bool) -> bool:
    if state is None or state.fence < fence:
        return is_early
    if state.fence > fence or state.phase is not Phase.STARTING:
        return False
    return is_early if state.has_data is None else not state.has_data


def _state_of(address: str, token: str) -> State | None:
    connection = http.client.HTTPConnection(address, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", "/state", headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return State.model_validate_json(answer.read()) if answer.status == http.client.OK else None
    except (OSError, http.client.HTTPException, ValidationError):
        return None
    finally:
        connection.close()
