"""The operator's I/O in memory: a cache that lags, polls that are lost, writes that conflict, a process that dies."""

from __future__ import annotations

from dataclasses import dataclass

from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.training_job import decide_training_job
from capstan_operator.decide.types import Decision
from capstan_operator.observe import Observed, ObservedJob, ObservedPod, ObservedSupervisor, OperatorSettings
from tests.simulate.pods import Refused
from tests.simulate.world import World
from tests.support.looks import JOB, JOB_UID, NAMESPACE

POLL_SECONDS, FIRST_LOOK_SECONDS = 2.0, 5.0
RESYNC_SECONDS = 10.0
"""A lost event is made good within this: before the silence of a pod that has ended counts as the loss of one."""


@dataclass
class Trouble:
    """How likely things go wrong, each time they could."""

    lost_event: float = 0.0
    repeated_event: float = 0.0
    lost_answer: float = 0.0
    death_at_write: float = 0.0


class Died(Exception):
    """The process is gone, in the middle of what it did."""


class Operator:
    """Watches a World and carries decisions out in it, in the order that `Decision` promises."""

    def __init__(self, world: World, trouble: Trouble, settings: OperatorSettings) -> None:
        self._world, self._trouble, self._settings = world, trouble, settings
        self._life = 0
        self.deaths_left = 4
        world.on_change = self._hear
        world.on_hint = lambda: self._after(world.soon(0.05, 0.3), self._poll_all)
        self._start()

    def _start(self) -> None:
        world = self._world
        self._life += 1
        self._answers: dict[str, ObservedSupervisor] = {}
        self._silent_since: dict[str, float] = {}
        self._next_pass: float | None = None
        self._pods: dict[str, ObservedPod] = {name: pod.observe() for name, pod in world.pods.items()}
        self._take_in_job()
        self._unseen = {pod.uid for pod in self._pods.values() if pod.phase == "Running"}
        self._after(FIRST_LOOK_SECONDS, self._unseen.clear)
        self._after(0.0, self._wake)
        self._after(world.soon(0.0, 0.5), self._poll_regularly)
        self._after(RESYNC_SECONDS, self._resync)

    def _after(self, delay: float, action: object) -> None:
        """On the clock, unless this process has died by then."""
        life = self._life
        self._world.at(delay, lambda: action() if life == self._life else None)  # type: ignore[operator]

    # Seeing

    def _hear(self, name: str) -> None:
        """The watch: late, sometimes twice, sometimes never (until the next list)."""
        chance = self._world.random.random()
        if chance < self._trouble.lost_event:
            return
        times = 2 if chance > 1 - self._trouble.repeated_event else 1
        for _ in range(times):
            self._after(self._world.soon(0.02, 0.6), lambda: self._take_in(name))

    def _take_in(self, name: str) -> None:
        if name == "job":
            self._take_in_job()
        elif name in self._world.pods:
            self._pods[name] = self._world.pods[name].observe()
        else:
            self._pods.pop(name, None)
        self._wake()

    def _take_in_job(self) -> None:
        world = self._world
        self._version = world.version
        self._job = ObservedJob(
            namespace=NAMESPACE,
            name=JOB,
            uid=JOB_UID,
            generation=world.generation,
            created_at=0.0,
            is_deleting=False,
            spec=world.spec,
            status=TrainingJobStatus.parse(world.status),
        )

    def _resync(self) -> None:
        self._take_in_job()
        self._pods = {name: pod.observe() for name, pod in self._world.pods.items()}
        self._wake()
        self._after(RESYNC_SECONDS, self._resync)

    def _poll_regularly(self) -> None:
        self._poll_all()
        self._after(POLL_SECONDS, self._poll_regularly)

    def _poll_all(self) -> None:
        for pod in list(self._pods.values()):
            if pod.phase != "Running" or pod.ip is None:
                continue
            state = self._world.trainers.ask(pod.uid)
            if self._world.random.random() < self._trouble.lost_answer:
                state = None
            self._unseen.discard(pod.uid)
            if state is None:
                self._silent_since.setdefault(pod.uid, self._world.now)
            else:
                self._silent_since.pop(pod.uid, None)
                self._answers[pod.uid] = ObservedSupervisor(state, self._world.now)
        self._wake()

    # Doing

    def _wake(self, delay: float = 0.0) -> None:
        due = self._world.now + delay
        if self._next_pass is not None and self._next_pass <= due:
            return
        self._next_pass = due
        self._after(delay, lambda: self._pass_if_due(due))

    def _pass_if_due(self, due: float) -> None:
        if self._next_pass != due or self._unseen:
            self._next_pass = None if self._next_pass == due else self._next_pass
            return
        self._next_pass = None
        try:
            decision = self._decide()
            self._carry_out(decision)
        except Refused:
            self._take_in_job()
            self._wake(1.0)
        except Died:
            self._world.note("! the operator dies")
            self._life += 1
            self._world.at(self._world.soon(0.5, 8.0), self._start)
        else:
            if decision.requeue_after is not None:
                self._wake(decision.requeue_after)

    def _decide(self) -> Decision:
        uids = {pod.uid for pod in self._pods.values()}
        observed = Observed(
            job=self._job,
            pods=tuple(sorted(self._pods.values(), key=lambda pod: (pod.worker, pod.incarnation))),
            supervisors={uid: answer for uid, answer in self._answers.items() if uid in uids},
            token="token",
            silent_since={uid: since for uid, since in self._silent_since.items() if uid in uids},
            is_chaos_allowed=self._settings.allow_chaos,
            settings=self._settings,
        )
        return decide_training_job(observed, self._world.now)

    def _carry_out(self, decision: Decision) -> None:
        world = self._world
        for manifest in decision.apply:
            self._may_die()
            world.apply_secret(manifest)
        # Creations run at the same time: any order is possible.
        for manifest in world.random.sample(decision.create, len(decision.create)):
            self._may_die()
            pod = world.create_pod(manifest)
            self._pods[pod.name] = pod.observe()
        for deletion in decision.delete:
            self._may_die()
            world.delete_pod(deletion.name, deletion.uid)
        for _ in decision.delete_secrets:
            self._may_die()
            world.delete_secret()
        if decision.status != self._job.status:
            self._may_die()
            world.write_status(decision.status, self._version)
            self._take_in_job()
        for push in decision.pushes:
            self._may_die()
            world.trainers.push(push.pod_uid, push.membership)
        if decision.pushes:
            self._after(0.05, self._poll_all)
        for event in decision.events:
            world.note(f"event {event.type} {event.reason}: {event.message}")

    def _may_die(self) -> None:
        if self.deaths_left and self._world.random.random() < self._trouble.death_at_write:
            self.deaths_left -= 1
            raise Died
