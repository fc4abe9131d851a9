"""Whether a revision that was given up is tried again, and when."""

from capstan_operator.api.inference_service_status import InferenceServiceStatus, RevisionFailure, RevisionStatus
from capstan_operator.decide.serving.fleet import Fleet, known_revision
from capstan_operator.decide.serving.reasons import ServingReason
from capstan_operator.decide.times import seconds_after, seconds_since_1970

FIRST_PAUSE_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 600.0
"""Between two tries of a revision beside which there is nothing to serve; each pause is twice the one before."""


def seconds_until_tried(fleet: Fleet, name: str) -> float | None:
    """When a revision may be tried; 0.0: now; None: never, as long as all is as it is.

    What is wrong with a checkpoint stays wrong. What a cluster or a Secret lacked may be there by now: it is looked for
    again when somebody changes the spec, and by itself where nothing else could be served meanwhile. And where nothing
    else is there, bad answers are better than none.
    """
    known = known_revision(fleet.status, name)
    failure = known.failure if known else None
    if known is None or failure is None:
        return 0.0
    is_alone = fleet.status.stable is None
    if failure.reason == ServingReason.CORRUPT_CHECKPOINT:
        return None
    if failure.reason == ServingReason.GATE_FAILED:
        return 0.0 if is_alone else None
    if failure.generation != fleet.seen.service.generation:
        return 0.0
    return max(0.0, _pause(known) - seconds_after(failure.at, fleet.now)) if is_alone else None


def turned_back(fleet: Fleet, asked: str) -> RevisionStatus | None:
    """What was last given up of all that was made for the very same, if it may not be tried now; None: nothing, or it
    may. Then it is made anew, by what the operator makes of it today."""
    failed = [one for one in fleet.status.revisions if one.failure is not None and one.asked == asked]
    return failed[-1] if failed and seconds_until_tried(fleet, failed[-1].name) != 0.0 else None


def tried_again_at(fleet: Fleet, known: RevisionStatus) -> float | None:
    """When (seconds since 1970) a revision that was given up is tried again by itself; None: it is not."""
    if known.failure is None or not seconds_until_tried(fleet, known.name):
        return None
    return seconds_since_1970(known.failure.at) + _pause(known)


def seconds_until_retry(fleet: Fleet) -> float | None:
    """When what the spec asks for is tried again by itself; None: it is not."""
    if fleet.wanted is None or fleet.rollout is not None or fleet.wanted.name == fleet.status.stable:
        return None
    return seconds_until_tried(fleet, fleet.wanted.name) or None


def forgive(status: InferenceServiceStatus, wanted: str) -> InferenceServiceStatus:
    """`status` in which nothing but what is for good keeps other revisions than `wanted` from being tried again."""
    revisions = [
        one if one.failure is None or one.name == wanted or _is_for_good(one.failure) else _forgiven(one, one.failure)
        for one in status.revisions
    ]
    return status if revisions == status.revisions else status.model_copy(update={"revisions": revisions})


def _is_for_good(failure: RevisionFailure) -> bool:
    return failure.reason in (ServingReason.CORRUPT_CHECKPOINT, ServingReason.GATE_FAILED)


def _forgiven(revision: RevisionStatus, failure: RevisionFailure) -> RevisionStatus:
    return revision.model_copy(update={"failure": failure.model_copy(update={"generation": None})})


def _pause(known: RevisionStatus) -> float:
    doublings = min(known.failures - 1, 10)
    return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** max(0, doublings))
