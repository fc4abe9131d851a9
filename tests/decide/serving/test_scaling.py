"""Laws of autoscaling: whatever pods say, and whatever load there is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from capstan_operator.api.autoscaling import Autoscaling
from capstan_operator.decide.serving.scaling import decide_size
from capstan_operator.observe_serving import LoadSample, ObservedLoad
from tests.support.serving_world import live

SAMPLE_SECONDS = 5.0
TARGET = 16
PODS = st.integers(1, 40)


def scaling(**changes: Any) -> Autoscaling:
    fields = {"min_replicas": 1, "max_replicas": 1000, "target_ongoing_requests": TARGET, **changes}
    return Autoscaling(**fields)


@dataclass
class Service:
    """As many pods as were decided on are there at once; it is asked and decided on every few seconds."""

    size: int
    scaling: Autoscaling = field(default_factory=scaling)
    now: float = 1000.0
    samples: list[LoadSample] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    """Each that was decided on, in order."""

    def live_on(self, ongoing: int, seconds: float, turned_away: int = 0) -> Service:
        """For so long there are so many requests."""
        ends = self.now + seconds
        while self.now < ends:
            self.now += SAMPLE_SECONDS
            self.samples.append(LoadSample(self.now, self.size, self.size, ongoing, turned_away))
            self.decide()
        return self

    def decide(self, *, may_shrink: bool = True) -> None:
        load = ObservedLoad(tuple(self.samples))
        resize = decide_size(self.scaling, self.size, load, may_shrink=may_shrink, now=self.now)
        if resize is not None:
            assert resize.replicas != self.size
            self.size = resize.replicas
            self.sizes.append(self.size)


@st.composite
def samples(draw: st.DrawFn) -> tuple[LoadSample, ...]:
    """What any pods may have said in the last minutes before 1000, with gaps and silent pods."""
    told = []
    at = 1000.0
    for _ in range(draw(st.integers(0, 30))):
        at -= draw(st.floats(0.0, 20.0))
        ready = draw(st.integers(0, 12))
        answered = draw(st.integers(0, ready))
        ongoing = draw(st.integers(0, 400)) if answered else 0
        told.append(LoadSample(at, ready, answered, ongoing, draw(st.sampled_from([0, 0, 0, 1, 50]))))
    return tuple(reversed(told))


@given(
    samples(),
    st.integers(0, 30),
    st.integers(0, 100),
    st.tuples(PODS, PODS, PODS).map(sorted),
    st.integers(1, 40),
    st.booleans(),
)
def test_whatever_pods_say_the_size_is_an_allowed_one_and_shrinks_only_where_it_may(
    told: tuple[LoadSample, ...], upscale: int, downscale: int, sizes: list[int], target: int, may_shrink: bool
) -> None:
    least, size, most = sizes
    asked = scaling(
        min_replicas=least,
        max_replicas=most,
        target_ongoing_requests=target,
        upscale_delay_seconds=upscale,
        downscale_delay_seconds=downscale,
    )
    resize = decide_size(asked, size, ObservedLoad(told), may_shrink=may_shrink, now=1000.0)
    if resize is not None:
        assert least <= resize.replicas <= most
        assert resize.replicas > size or may_shrink
        reach = upscale if resize.replicas > size else downscale
        assert told[0].at <= 1000.0 - reach
        assert 1000.0 - told[-1].at <= 15.0


@settings(max_examples=50)
@given(PODS, st.integers(0, 2000))
def test_a_constant_load_leads_to_one_size_that_holds_it(size: int, ongoing: int) -> None:
    service = Service(size).live_on(ongoing, 900)
    assert len(service.sizes) <= 1
    room = TARGET * service.size
    assert 10 * ongoing <= 11 * room
    assert service.size == max(1, -(-ongoing // TARGET)) or 9 * room <= 10 * ongoing


@settings(max_examples=50)
@given(PODS, st.lists(st.floats(0.9, 1.1), min_size=1, max_size=60))
def test_a_load_of_a_tenth_about_the_target_changes_nothing(size: int, noise: list[float]) -> None:
    service = Service(size)
    room = size * TARGET
    for factor in noise:
        exact = min(max(round(room * factor), -(-room * 9 // 10)), room * 11 // 10)
        service.live_on(exact, 60)
    assert service.sizes == []


@settings(max_examples=50)
@given(PODS, st.lists(st.tuples(st.integers(0, 600), st.integers(1, 400)), min_size=1, max_size=12))
def test_what_was_asked_for_within_the_downscale_delay_is_kept(size: int, loads: list[tuple[int, int]]) -> None:
    service = Service(size)
    for ongoing, seconds in loads:
        ends = service.now + seconds
        while service.now < ends:
            before = service.size
            service.live_on(ongoing, SAMPLE_SECONDS)
            lately = [one.ongoing for one in service.samples if one.at >= service.now - 300]
            shortly = [one.ongoing for one in service.samples if one.at >= service.now - 10]
            if service.size < before:
                assert max(lately) <= service.size * TARGET
            if service.size > before:
                assert min(shortly) > (service.size - 1) * TARGET


@settings(max_examples=50)
@given(st.integers(1, 20), st.integers(1, 10_000), st.integers(1, 16))
def test_as_long_as_requests_are_turned_away_there_are_more_pods_but_never_at_once_more_than_twice(
    size: int, turned_away: int, capacity: int
) -> None:
    """Pods that take on no more than the target: their requests alone would never ask for more."""
    service = Service(size)
    for _ in range(3):
        before = service.size
        service.live_on(service.size * capacity, 15, turned_away)
        assert before < service.size <= 2 * before
        service.samples.clear()


@given(st.integers(1, 20), st.integers(1, 5000))
def test_while_pods_come_up_the_same_is_asked_for_again(ready: int, turned_away: int) -> None:
    told = [LoadSample(900.0 + 5 * index, ready, ready, ready * TARGET, turned_away) for index in range(21)]
    first = decide_size(scaling(), ready, ObservedLoad(tuple(told)), may_shrink=True, now=1000.0)
    assert first is not None
    again = decide_size(scaling(), first.replicas, ObservedLoad(tuple(told)), may_shrink=True, now=1000.0)
    assert again is None


@given(st.integers(2, 40), st.integers(1, 600))
def test_pods_that_say_nothing_neither_add_nor_remove_any(size: int, seconds: int) -> None:
    told = tuple(LoadSample(1000.0 - at, size, 0, 0) for at in range(seconds, -1, -5))
    assert decide_size(scaling(), size, ObservedLoad(told), may_shrink=True, now=1000.0) is None


def test_silent_pods_count_as_full_where_it_is_about_fewer_and_as_idle_where_it_is_about_more() -> None:
    def decided(ready: int, answered: int, ongoing: int) -> int | None:
        told = tuple(LoadSample(1000.0 - at, ready, answered, ongoing) for at in range(300, -1, -5))
        resize = decide_size(scaling(), 4, ObservedLoad(told), may_shrink=True, now=1000.0)
        return resize.replicas if resize else None

    assert decided(ready=4, answered=4, ongoing=17) == 2
    assert decided(ready=4, answered=3, ongoing=17) == 3
    assert decided(ready=4, answered=2, ongoing=33) is None
    assert decided(ready=4, answered=2, ongoing=80) == 5


def test_without_delays_the_newest_sample_decides() -> None:
    at_once = scaling(upscale_delay_seconds=0, downscale_delay_seconds=0)
    told = ObservedLoad((LoadSample(995.0, 2, 2, 200), LoadSample(1000.0, 2, 2, 90)))
    grown = decide_size(at_once, 2, told, may_shrink=True, now=1000.0)
    shrunk = decide_size(at_once, 9, told, may_shrink=True, now=1000.0)
    assert [one and (one.replicas, one.message) for one in (grown, shrunk)] == [
        (6, "from 2 to 6: 90 ongoing requests, 16 per pod wanted"),
        (6, "from 9 to 6: at most 90 ongoing requests in 0 s, 16 per pod wanted"),
    ]
    assert decide_size(at_once, 2, told, may_shrink=True, now=1015.1) is None


@settings(max_examples=20)
@given(st.lists(st.integers(0, 35), min_size=1, max_size=100))
def test_a_load_that_moves_within_what_the_pods_are_to_have_writes_nothing(loads: list[int]) -> None:
    world = live(replicas=None, autoscaling={"minReplicas": 2, "maxReplicas": 8})
    at_rest = world.status
    for ongoing in loads:
        world.now += SAMPLE_SECONDS
        world.note_load(ongoing)
        decision = world.decide()
        assert (world.status, decision.apply, decision.scale, decision.events) == (at_rest, (), (), ())
        assert decision.requeue_after == SAMPLE_SECONDS
