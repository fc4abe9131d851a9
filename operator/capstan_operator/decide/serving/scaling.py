"""How many pods autoscaling asks for, from what the pods said of their requests.

A sample asks for as many pods as its requests fill up to the target. The size grows to what every sample of the
upscale delay asks for, and shrinks to the most that any sample of the downscale delay does. What nobody knows changes
nothing: without a sample, or with a gap between two, the size stays.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from capstan_operator.api.autoscaling import Autoscaling
from capstan_operator.api.inference_service_status import InferenceServiceStatus
from capstan_operator.observe_serving import LoadSample, ObservedDeployment, ObservedLoad

STALE_SECONDS = 15.0
"""A sample says nothing of what is so long after it."""
TOLERANCE_PERCENT = 10
"""So much above or below the target is as good as the target; the HorizontalPodAutoscaler's default too."""


@dataclass(frozen=True, slots=True)
class Resize:
    """Another size, and why in one sentence."""

    replicas: int
    message: str


def decide_size(
    scaling: Autoscaling, size: int, load: ObservedLoad | None, *, may_shrink: bool, now: float
) -> Resize | None:
    """The size that is asked for by `now` (seconds since 1970), always an allowed one; None: the one there is."""
    samples = load.samples if load else ()
    lately = _window(samples, scaling.upscale_delay_seconds, now)
    if lately:
        least = min(lately, key=lambda one: _asked_at_least(scaling, size, one))
        more = scaling.clamp(_asked_at_least(scaling, size, least))
        if more > size:
            return Resize(more, f"from {size} to {more}: {_told(least)}, {_wanted(scaling)}")
    longer = _window(samples, scaling.downscale_delay_seconds, now) if may_shrink else ()
    if longer:
        most = max(longer, key=lambda one: _asked_at_most(scaling, size, one))
        fewer = scaling.clamp(_asked_at_most(scaling, size, most))
        if fewer < size:
            period = f"in {scaling.downscale_delay_seconds} s"
            return Resize(fewer, f"from {size} to {fewer}: at most {_told(most)} {period}, {_wanted(scaling)}")
    return None


def is_limited(scaling: Autoscaling, size: int, load: ObservedLoad | None, now: float) -> bool | None:
    """Whether requests ask for more pods than are allowed; None: as before. With the delays of the size, so that it
    says nothing else at every look."""
    samples = load.samples if load else ()
    lately = _window(samples, scaling.upscale_delay_seconds, now)
    if lately and all(_asked_at_least(scaling, size, one) > scaling.max_replicas for one in lately):
        return True
    longer = _window(samples, scaling.downscale_delay_seconds, now)
    if longer and all(_asked_at_most(scaling, size, one) <= scaling.max_replicas for one in longer):
        return False
    return None


def fit_size(
    scaling: Autoscaling | None, status: InferenceServiceStatus, deployments: Iterable[ObservedDeployment]
) -> InferenceServiceStatus:
    """`status` with a size that the spec allows now, or none where autoscaling does not decide it.

    Autoscaling begins with the size there is, so that nobody loses pods for having turned it on.
    """
    if scaling is None:
        return status.model_copy(update={"replicas": None, "scaled": None})
    if status.replicas is None:
        begun = max((one.replicas for one in deployments), default=scaling.min_replicas)
        return status.model_copy(update={"replicas": scaling.clamp(begun)})
    size = scaling.clamp(status.replicas)
    if size == status.replicas:
        return status
    bound = "minReplicas" if size > status.replicas else "maxReplicas"
    return status.model_copy(
        update={"replicas": size, "scaled": f"from {status.replicas} to {size}: {bound} is {size}"}
    )


def _window(samples: tuple[LoadSample, ...], seconds: float, now: float) -> tuple[LoadSample, ...]:
    """The samples that tell of the last `seconds`, the first of them from before; none if they do not tell of all."""
    known_before = bisect_right(samples, now - seconds, key=lambda one: one.at)
    if not known_before:
        return ()
    window = samples[known_before - 1 :]
    moments = [one.at for one in window] + [now]
    return window if all(later - earlier <= STALE_SECONDS for earlier, later in pairwise(moments)) else ()


def _asked_at_least(scaling: Autoscaling, size: int, sample: LoadSample) -> int:
    """As if pods that did not answer had no requests."""
    return _asked(scaling, size, sample, sample.ongoing)


def _asked_at_most(scaling: Autoscaling, size: int, sample: LoadSample) -> int:
    """As if pods that did not answer had as many requests as they are to have."""
    silent = sample.ready - sample.answered
    return _asked(scaling, size, sample, sample.ongoing + silent * scaling.target_ongoing_requests)


def _asked(scaling: Autoscaling, size: int, sample: LoadSample, requests: int) -> int:
    if not sample.answered:
        return size
    target = scaling.target_ongoing_requests
    room = size * target
    is_near = 100 * abs(requests - room) <= TOLERANCE_PERCENT * room
    asked = size if is_near else _pods_for(requests, target)
    if not sample.turned_away:
        return asked
    # Nobody knows how long these would have stayed, and who is turned away comes again: they ask for room beside the
    # pods that are ready, and for at most as many again at a time. While those come up, the same is asked for.
    return max(asked, sample.ready + min(sample.ready, _pods_for(sample.turned_away, target)))


def _pods_for(requests: int, target: int) -> int:
    return -(-requests // target)


def _told(sample: LoadSample) -> str:
    away = f" and {sample.turned_away} turned away" if sample.turned_away else ""
    return f"{sample.ongoing} ongoing requests{away}"


def _wanted(scaling: Autoscaling) -> str:
    return f"{scaling.target_ongoing_requests} per pod wanted"
