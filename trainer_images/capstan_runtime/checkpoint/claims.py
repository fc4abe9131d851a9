"""Fencing without locks: an attempt writes down what it found before it trains, and later readers go by that.

A process that should be dead, cut off on a node nobody reaches, may still commit. Its fence is older than the newest
claim's, and its commit is not among those the claim lists; so it does not count, whenever it arrives.
"""

from capstan_runtime.checkpoint.digest import digest_of, name_of
from capstan_runtime.checkpoint.layout import CLAIMS, claim_name, claim_of_run
from capstan_runtime.checkpoint.manifest import Claim, canonical_bytes
from capstan_runtime.checkpoint.store import ObjectMissing, Store, is_damage

_KEPT = 2
"""The newest decides; the one before stands in if its bytes are bad."""


def newest_claim(store: Store, run: str) -> Claim | None:
    """The claim of `run` with the highest fence; None before the first attempt. Unreadable ones are passed over.
    Raises OSError."""
    for key in _claim_keys(store, run):
        try:
            claim = _unsealed(key, store.get(key))
        except (ValueError, ObjectMissing):
            continue  # torn by a dying disk, or removed by a newer attempt just now: the one before is nearly as good
        except OSError as error:
            if not is_damage(error):
                raise
            continue
        if claim.run == run:
            return claim
    return None


def newer_fence(store: Store, run: str, fence: int) -> int | None:
    """The fence of an attempt that has taken over from `fence`; None: there is none. Raises OSError."""
    claim = newest_claim(store, run)
    return claim.fence if claim is not None and claim.fence > fence else None


def write_claim(store: Store, claim: Claim) -> None:
    """From the moment this returns, older fences can add nothing to the store. Raises OSError."""
    store.put(_key(claim), [_sealed(claim)])
    store.settle(CLAIMS)
    for key in _claim_keys(store, claim.run)[_KEPT:]:
        store.remove(key)


def withdraw_claim(store: Store, claim: Claim) -> None:
    """Undoes `write_claim` for an attempt that found nothing to go on from: what somebody copies back into the store
    must not be taken for the work of a dead process. Raises OSError."""
    store.remove(_key(claim))


def _sealed(claim: Claim) -> bytes:
    """The claim in one line, and its digest in another: one wrong digit among the roots, and a good checkpoint would
    be taken for a latecomer's and swept up."""
    data = canonical_bytes(claim)
    return data + b"\n" + name_of(digest_of(data)).encode()


def _unsealed(key: str, sealed: bytes) -> Claim:
    """Raises ValueError unless it is what was written under this name. Without a digest: by an earlier version."""
    data, _, digest = sealed.partition(b"\n")
    if digest and digest != name_of(digest_of(data)).encode():
        raise ValueError(f"{key}: is not what was written")
    claim = Claim.model_validate_json(data)
    if _key(claim) != key:
        raise ValueError(f"{key}: holds the claim of fence {claim.fence}")
    return claim


def _key(claim: Claim) -> str:
    return f"{CLAIMS}/{claim_name(claim.fence, claim.attempt)}"


def _claim_keys(store: Store, run: str) -> list[str]:
    """Newest fence first."""
    return [f"{CLAIMS}/{name}" for name in reversed(store.children(CLAIMS)) if claim_of_run(name, run)]
