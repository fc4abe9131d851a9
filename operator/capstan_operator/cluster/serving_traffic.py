"""What the answers of a service's replicas add up to. Pure: the scraper brings answers and the time."""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import ceil

from capstan_operator.observe_serving import LoadSample, ObservedLoad, ObservedTraffic, RevisionLatency, ServedTraffic

WINDOW_SECONDS = 60.0
"""Over about so long latencies are told."""
SNAPSHOT_SECONDS = 5.0
"""So exactly the window is kept."""
LEAST_FOR_P50 = 10
LEAST_FOR_P99 = 100
"""Of fewer answers, the slowest one would be the percentile."""
GONE_SECONDS = 600.0
"""So long the last answer of a pod is kept that nobody asks any more: it may come back."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Sums that only grow: what one process counted, or what many did."""

    requests: int = 0
    errors: int = 0
    turned_away: int = 0
    """For lack of room."""
    timed: int = 0
    bounds: tuple[float, ...] | None = None
    """Upper bounds of the latency buckets, ascending, without the infinite one; None: these are sums of nothing,
    which fit any."""
    within: tuple[int, ...] = ()
    """How many of those timed took at most that long; cumulative."""
    compared: int = 0
    """Answers of which it is known what the proven revision answers."""
    different: int = 0
    """Of those, the ones where it predicts another class."""

    def __add__(self, other: "Counts") -> "Counts":
        if self.bounds is None or other.bounds is None:
            return other if self.bounds is None else self
        ours, theirs = fitted((self, other))
        return Counts(
            self.requests + other.requests,
            self.errors + other.errors,
            self.turned_away + other.turned_away,
            self.timed + other.timed,
            ours.bounds,
            tuple(map(int.__add__, ours.within, theirs.within)),
            self.compared + other.compared,
            self.different + other.different,
        )

    def __sub__(self, earlier: "Counts") -> "Counts":
        """What came since `earlier`, of the same sums."""
        if earlier.bounds is None:
            return self
        ours, theirs = fitted((self, earlier))
        return Counts(
            self.requests - earlier.requests,
            self.errors - earlier.errors,
            self.turned_away - earlier.turned_away,
            self.timed - earlier.timed,
            ours.bounds,
            tuple(map(int.__sub__, ours.within, theirs.within)),
            self.compared - earlier.compared,
            self.different - earlier.different,
        )

    def is_less(self, earlier: "Counts") -> bool:
        """Whether any of the sums went down, which none does as long as the process lives."""
        return (
            self.bounds != earlier.bounds
            or self.requests < earlier.requests
            or self.errors < earlier.errors
            or self.turned_away < earlier.turned_away
            or self.timed < earlier.timed
            or any(map(int.__lt__, self.within, earlier.within))
            or self.compared < earlier.compared
            or self.different < earlier.different
        )

    def at(self, bounds: tuple[float, ...]) -> "Counts":
        """The same in the buckets with these bounds, which all are among its own. Exact, as buckets are cumulative."""
        if self.bounds is None or self.bounds == bounds:
            return self
        by_bound = dict(zip(self.bounds, self.within, strict=True))
        return replace(self, bounds=bounds, within=tuple(by_bound[bound] for bound in bounds))

    def quantile(self, share: float) -> float | None:
        """Seconds within which this share of the answers came; None: some took longer than the last bound."""
        rank = ceil(share * self.timed)
        return next((bound for bound, count in zip(self.bounds or (), self.within, strict=True) if count >= rank), None)


NOTHING = Counts()


def fitted(counts: Iterable[Counts]) -> tuple[Counts, ...]:
    """All of them in the buckets that all have: replicas of two versions may not have the same."""
    counts = tuple(counts)
    different = {one.bounds for one in counts if one.bounds is not None}
    if len(different) <= 1:
        return counts
    common = tuple(sorted(frozenset.intersection(*map(frozenset, different))))
    return tuple(one.at(common) for one in counts)


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer of one pod."""

    revision: str
    """That it serves."""
    began: float
    """When the process began to count, by its own clock: another value is another process."""
    counts: Counts
    ongoing: int | None = None
    """Requests that it works on now or that wait for it; None: it does not say."""


def counted_between(earlier: Reading, later: Reading) -> Counts:
    """What a pod counted between two answers. If its container was started again, that is all that the new process
    counted; what the old one counted after its last answer is lost, and not guessed."""
    if later.began != earlier.began or later.counts.is_less(earlier.counts):
        return later.counts
    return later.counts - earlier.counts


@dataclass(slots=True)
class _Pod:
    """The newest answer, and when the pod was last to be asked."""

    reading: Reading
    wanted_at: float


class ServiceTraffic:
    """One service. A round begins, brings at most one answer of each pod, and ends.

    The first answer of a pod that is asked in a step is what the later ones are compared with, however new the pod is:
    what it counted before may be from before the step. That loses one interval of a new pod, in which it was hardly
    ready, and mixes nothing.
    """

    def __init__(self) -> None:
        self._pods: dict[str, _Pod] = {}
        self._since: str | None = None
        self._began: float | None = None
        """End of the first round in this step; None: none has ended yet."""
        self._in_step: set[str] = set()
        """Pods that answered in this step."""
        self._step: dict[str, Counts] = {}
        """By revision: what was counted in this step, by pods that are gone, too."""
        self._total: dict[str, Counts] = {}
        """By revision: what was counted ever."""
        self._past: dict[str, deque[tuple[float, Counts]]] = {}
        """By revision: how much that was, from about the window's begin on."""
        self._has_news = False
        self._ready: set[str] = set()
        """Of the pods that are asked in this round."""
        self._ongoing: dict[str, int] = {}
        """By pod, those of this round."""
        self._turned_away = 0
        self._load_seconds: float | None = None
        self._samples: tuple[LoadSample, ...] = ()
        """Of the load, newest last. A round makes a new tuple, so that no pass needs a copy."""

    def begin_round(
        self, since: str | None, pods: Mapping[str, bool], now: float, load_seconds: float | None = None
    ) -> None:
        """`pods` are asked from now on: by uid, whether they are ready. `since`: the step that they are in, or None.
        `load_seconds`: how far samples of the load go back; None: nobody needs one."""
        self._has_news = False
        self._ready = {uid for uid, is_ready in pods.items() if is_ready}
        self._ongoing = {}
        self._turned_away = 0
        self._load_seconds = load_seconds
        if since != self._since:
            self._since, self._began, self._in_step, self._step = since, None, set(), {}
        for uid in pods:
            if uid in self._pods:
                self._pods[uid].wanted_at = now
        for uid in [uid for uid, pod in self._pods.items() if now - pod.wanted_at > GONE_SECONDS]:
            del self._pods[uid]
            self._in_step.discard(uid)

    def take(self, uid: str, reading: Reading, now: float) -> None:
        """What a pod answered in this round."""
        revision = reading.revision
        known = self._pods.get(uid)
        self._pods[uid] = _Pod(reading, now)
        new = counted_between(known.reading, reading) if known else NOTHING
        self._total[revision] = self._total.get(revision, NOTHING) + new
        self._turned_away += new.turned_away
        if reading.ongoing is not None and uid in self._ready:
            self._ongoing[uid] = reading.ongoing
        if self._since is None:
            return
        if uid in self._in_step:
            self._step[revision] += new
            self._has_news |= new.requests > 0 or new.timed > 0 or new.compared > 0
        else:
            self._in_step.add(uid)
            self._step[revision] = self._step.get(revision, NOTHING) + (reading.counts - reading.counts)

    def end_round(self, now: float, wall_time: float) -> bool:
        """Whether it brought numbers for the step. `wall_time`: the same moment as seconds since 1970."""
        if self._began is None:
            self._began = wall_time
        self._add_sample(wall_time)
        self._add_snapshots(now)
        return self._has_news

    def _add_sample(self, at: float) -> None:
        if self._load_seconds is None:
            self._samples = ()
            return
        ongoing = sum(self._ongoing.values())
        newest = LoadSample(at, len(self._ready), len(self._ongoing), ongoing, self._turned_away)
        # The newest of those that are old enough tells what was at the beginning of the time asked for.
        first = bisect_right(self._samples, at - self._load_seconds, key=lambda one: one.at)
        self._samples = (*self._samples[max(0, first - 1) :], newest)

    def _add_snapshots(self, now: float) -> None:
        """How far the sums are, of the revisions that have pods."""
        alive = {pod.reading.revision for pod in self._pods.values()}
        for revision in self._total.keys() - alive:
            del self._total[revision]
            self._past.pop(revision, None)
        for revision, total in self._total.items():
            past = self._past.setdefault(revision, deque())
            if not past or now - past[-1][0] >= SNAPSHOT_SECONDS:
                past.append((now, total))
            while len(past) > 1 and now - past[1][0] >= WINDOW_SECONDS:
                past.popleft()

    def traffic(self) -> ObservedTraffic | None:
        """Of this step, in the buckets that all revisions have; None: there is no step, or no round of it has ended."""
        if self._since is None or self._began is None:
            return None
        by_revision = dict(zip(self._step, fitted(self._step.values()), strict=True))
        return ObservedTraffic(
            since=self._since,
            bounds=next((one.bounds or () for one in by_revision.values()), ()),
            by_revision={
                name: ServedTraffic(one.requests, one.errors, one.within, one.timed, one.compared, one.different)
                for name, one in by_revision.items()
            },
            began=self._began,
        )

    def load(self) -> ObservedLoad | None:
        """A sample of each round of the time that was asked for, and the one before; None: there is none."""
        return ObservedLoad(self._samples) if self._samples else None

    def latency(self) -> Mapping[str, RevisionLatency]:
        """Of the revisions that have pods, over the last minute, or as long as they are known."""
        latencies = {}
        for revision, past in self._past.items():
            recent = self._total[revision] - past[0][1]
            latencies[revision] = RevisionLatency(
                p50=recent.quantile(0.5) if recent.timed >= LEAST_FOR_P50 else None,
                p99=recent.quantile(0.99) if recent.timed >= LEAST_FOR_P99 else None,
                requests=recent.timed,
            )
        return latencies
