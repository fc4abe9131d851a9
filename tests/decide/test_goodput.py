"""Every second of a job's life in exactly one class, whatever happens and whoever looks when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from capstan_operator.api.recovery_status import GoodputSeconds
from capstan_operator.api.training_job_status import TrainingJobStatus
from tests.support.lives import Life
from tests.support.looks import look, make_pod, make_state, root

ZERO, ONE = "digits-worker-0", "digits-worker-1"
CRASH = {"fence": 1, "code": 137, "signal": "SIGKILL", "failure": "Crash", "message": "", "at": 30.0, "step": 47}


def ledger(life: Life) -> dict[str, float]:
    """What is not zero of it."""
    goodput = life.status.goodput
    assert goodput is not None
    return {name: value for name, value in goodput.seconds.model_dump().items() if value}


def age_told(life: Life) -> float:
    return round(sum(ledger(life).values()), 2)


def test_an_undisturbed_life_is_queued_starts_and_trains() -> None:
    life = Life("starting")  # created at 0 s, its attempt began at 10 s
    life.say(ZERO, fence=1, world=2, rank=0, phase="Training", step=40, steps=200)
    life.say(ONE, fence=1, world=2, rank=1, phase="Training", step=40, steps=200)
    life.say(ZERO, seconds={"Starting": 3.0, "Restoring": 0.5, "Compiling": 4.0, "Training": 2.0, "Saving": 0.25})
    life.decide(20.0)
    told = {"queued": 10.0, "starting": 3.0, "restoring": 0.5, "compiling": 4.0, "training": 2.25, "saving": 0.25}
    assert ledger(life) == told  # what was not reported yet counts as what it was doing last
    life.say(ZERO, seconds={"Training": 10.75, "Saving": 0.75, "Evaluating": 1.0}, step=150)
    life.decide(30.0)
    assert ledger(life) == told | {"training": 10.75, "saving": 0.75, "evaluating": 1.0}
    assert (life.status.goodput.ratio, life.status.goodput.percent) == (0.3583, "36%")


def test_what_was_in_vain_is_rework_and_the_time_until_the_next_processes_is_recovering() -> None:
    life = Life()
    life.say(ZERO, step=47, seconds={"Starting": 5.0, "Training": 15.0})
    life.decide(30.0)
    before = ledger(life)
    life.say(ONE, phase="Exited", step=47, exit=CRASH)
    life.say(ZERO, phase="Exited", step=47, exit=CRASH | {"code": 75, "signal": None, "failure": "Retryable"})
    life.decide(34.0)
    back = {"fence": 2, "phase": "Training", "step": 41, "resumedFrom": {"step": 40, "root": root(40), "at": 36.0}}
    times = {"Starting": 35.0, "Restoring": 36.0, "Compiling": 37.0, "Training": 38.0}
    life.say(**back, exit=None, timeline=times, seconds={"Starting": 1.0, "Restoring": 1.0, "Compiling": 1.0} | NOTHING)
    life.decide(38.0)
    assert life.recoveries[0].seconds_lost == 0.7
    assert ledger(life) == before | {
        "recovering": 5.0,
        "starting": before["starting"] + 1.0,
        "restoring": 1.0,
        "compiling": 1.0,
        "training": round(before["training"] - 0.7, 3),
        "rework": 0.7,
    }


NOTHING = {"Training": 0.0}


def test_a_restarted_operator_goes_on_where_the_last_one_stopped() -> None:
    life = Life("starting")
    life.say(fence=1, phase="Training", step=40, seconds={"Starting": 5.0, "Training": 5.0})
    life.decide(20.0)
    stored = TrainingJobStatus.parse(life.status.document())
    life.seen = replace(life.seen, job=replace(life.seen.job, status=stored))
    before = ledger(life)
    # Nobody looked for an hour, in which rank 0 saved for a minute.
    life.say(ZERO, step=199, seconds={"Training": 3545.0, "Saving": 60.0})
    life.decide(3620.0)
    spent = {name: round(value - before.get(name, 0.0), 2) for name, value in ledger(life).items()}
    assert {name: value for name, value in spent.items() if value} == {"training": 3540.0, "saving": 60.0}


def test_a_suspension_is_neither_good_nor_bad() -> None:
    life = Life("suspended")
    suspended = ledger(life)["suspended"]
    life.change_spec(suspend=False)
    life.decide(1060.0)
    assert round(ledger(life)["suspended"] - suspended, 2) == 1000.0
    seconds = life.status.goodput.seconds
    share = seconds.training / (sum(seconds.model_dump().values()) - seconds.suspended)
    assert abs(life.status.goodput.ratio - share) < 1e-4


def test_a_ledger_is_never_a_reason_to_write() -> None:
    life = Life()
    before = life.status
    for now in (21.0, 22.0, 23.0):
        life.say(ZERO, seconds={"Training": now})
        life.decide(now)
    assert life.status == before


def test_the_ledger_stops_with_the_job() -> None:
    life = Life("succeeded")
    assert age_told(life) == 60.0
    before = life.status
    life.decide(500.0)
    assert life.status.goodput == before.goodput


PHASES = ("Starting", "Restoring", "Compiling", "Training", "Saving", "Evaluating", "Stopping")
EVENTS = st.one_of(
    st.tuples(st.just("spend"), st.sampled_from(PHASES), st.floats(0.0, 50.0)),
    st.tuples(st.just("phase"), st.sampled_from(PHASES), st.just(0.0)),
    st.tuples(
        st.sampled_from(["crash", "lose", "join", "suspend", "resume", "silence", "break spec"]), st.none(), st.none()
    ),
    st.tuples(st.just("wait"), st.none(), st.floats(-5.0, 300.0)),
)


class Chaos(Life):
    """A life in which anything happens, plausible or not."""

    now = 20.0
    spent: dict[str, float] = {}

    def happen(self, what: str, phase: str | None, amount: float | None) -> None:
        pods = {pod.name: pod for pod in self.seen.pods}
        if what == "spend":
            self.spent = self.spent | {phase: self.spent.get(phase, 0.0) + amount}
            self._tell(seconds=self.spent)
        elif what == "phase":
            self._tell(phase=phase)
        elif what == "crash":
            self._tell(phase="Exited", exit=CRASH | {"fence": self.status.fence, "at": self.now - 1.0})
        elif what == "lose" and pods:
            gone = sorted(pods)[0]
            self.seen = replace(self.seen, pods=tuple(pod for pod in self.seen.pods if pod.name != gone))
        elif what == "join":
            self.spent = {}
            self._come_up()
        elif what in ("suspend", "resume"):
            self.change_spec(suspend=what == "suspend")
            if what == "suspend":
                self.seen = look(self.seen.job, [])
        elif what == "silence":
            silent = {pod.uid: self.now for pod in self.seen.pods}
            self.seen = replace(self.seen, silent_since={} if self.seen.silent_since else silent)
        elif what == "break spec":
            self.change_spec(workers={"max": 2 if self.seen.job.spec["workers"]["max"] == 0 else 0})
        else:
            self.now += amount or 0.0

    def _come_up(self) -> None:
        fence = max(1, self.status.fence)
        pods = [make_pod(0), make_pod(1)]
        words = {"fence": fence, "world": 2, "phase": "Training", "step": 40, "timeline": {"Training": self.now}}
        states = {pod.name: make_state(pod, words | {"rank": pod.worker}) for pod in pods}
        self.seen = look(self.seen.job, pods, states)

    def _tell(self, **words: Any) -> None:
        known = [pod.name for pod in self.seen.pods if pod.uid in self.seen.supervisors]
        if known:
            self.say(*known, **words)


@given(st.lists(EVENTS, max_size=25))
@example(events=[(what, None, None) for what in ("lose", "suspend", "join", "resume")])
@settings(max_examples=150)
def test_the_classes_always_add_up_to_the_jobs_age(events: list[tuple[str, str | None, float | None]]) -> None:
    life = Chaos()
    written = life.now
    for event in events:
        life.happen(*event)
        before = life.status
        life.decide(life.now)
        assert life.status.goodput is not None
        seconds: GoodputSeconds = life.status.goodput.seconds
        total = sum(seconds.model_dump().values())
        assert min(seconds.model_dump().values()) >= 0.0
        assert 0.0 <= life.status.goodput.ratio <= 1.0
        if life.status != before and life.status.finished_at is None and life.status.phase != "Invalid":
            written = max(written, life.now)  # a clock that is set back takes nothing back
            assert abs(total - written) < 0.02, "something was left out or counted twice"
        for record in life.recoveries:
            parts = record.seconds.model_dump(exclude={"total"}, exclude_none=True)
            assert round(sum(parts.values()), 3) == record.seconds.total
            assert min(parts.values(), default=0.0) >= 0.0
        assert len({record.fence for record in life.recoveries}) == len(life.recoveries)
