"""Kueue admits a job's pods: in which groups they wait, what is told meanwhile, and what a preemption costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from capstan_operator.build.children import pod_name
from capstan_operator.decide.training_job import decide_training_job
from tests.support.lives import Life
from tests.support.looks import JOB, look, make_job, make_pod, make_state

GATED = "SchedulingGated: Scheduling is blocked due to non-empty scheduling gates"
ELASTIC = {"workers": {"max": 4, "min": 1}, "training": {"globalBatchSize": 16, "virtualRanks": 4}}
EVICTED = "WorkloadEvicted: Preempted to accommodate a workload of higher priority"


class QueuedLife(Life):
    """A job in queue team-a. Its pods are made as they are asked for, and wait until `admit`."""

    def __init__(self, **spec: Any) -> None:
        super().__init__("nothing")
        self.seen = look(make_job(spec, queue="team-a"))
        self.now = 0.0

    def pass_time(self, seconds: float = 1.0) -> list[str]:
        """One look after `seconds`, and what it asks for is done; the events in words."""
        self.now += seconds
        events = self.decide(self.now)
        made = [self._made(manifest) for manifest in self.decision.create]
        ended = {end.name for end in self.decision.end_groups}
        gone = {deletion.name for deletion in self.decision.delete}
        pods = [replace(pod, is_last_of_group=pod.is_last_of_group or pod.name in ended) for pod in self.seen.pods]
        # A pod that never ran ends at once; the finalizer keeps it until its group is over, or it is replaced.
        pods = [replace(pod, is_deleting=True) if pod.name in gone else pod for pod in pods]
        over = {pod.group for pod in pods if pod.is_last_of_group}
        replaced = {(pod.worker, pod.group) for pod in made}
        kept = [pod for pod in pods if not (pod.is_deleting and pod.phase != "Running" and pod.group in over)]
        kept = [pod for pod in kept if not (pod.is_deleting and (pod.worker, pod.group) in replaced)]
        self._see([*kept, *made])
        return events

    def admit(self, *workers: int) -> None:
        """Kueue lets the newest pods of these workers through, nodes run them, and their supervisors answer."""
        for pod in self.seen.pods:
            if pod.worker in workers and not pod.is_deleting:
                self.change_pod(pod.name, phase="Running", waiting=None, ip=f"10.0.0.{pod.worker + 1}", node="node-0")
        self._see(list(self.seen.pods))

    def train(self, step: int) -> None:
        """All members make steps."""
        for name in self.running():
            self.say(name, fence=self.status.fence, phase="Training", step=step, steps=200, timeline={"Training": 1.0})

    def preempt(self, *workers: int) -> None:
        """Kueue takes these workers' pods away; all members save and stop."""
        names = [pod.name for pod in self.seen.pods if pod.worker in workers and not pod.is_deleting]
        for name in names:
            self.change_pod(name, is_deleting=True, stopped_by_queue=EVICTED)
        for name in self.running():
            code = {"fence": self.status.fence, "code": 80, "failure": "Stopped", "message": "", "at": self.now}
            self.say(name, phase="Exited", exit=code)
        for name in names:
            self.change_pod(name, phase="Failed", exit_code=80)

    def running(self) -> list[str]:
        return [pod.name for pod in self.seen.pods if pod.phase == "Running"]

    def groups(self) -> list[tuple[int, int]]:
        """(first worker, size) of each."""
        queue = self.status.queue
        return [(group.first, group.size) for group in queue.groups] if queue else []

    def _made(self, manifest: dict[str, Any]) -> Any:
        labels, annotations = manifest["metadata"]["labels"], manifest["metadata"]["annotations"]
        assert labels["kueue.x-k8s.io/queue-name"] == "team-a"
        group = labels["kueue.x-k8s.io/pod-group-name"]
        (size,) = [one.size for one in self.status.queue.groups if one.name == group]  # type: ignore[union-attr]
        assert annotations["kueue.x-k8s.io/pod-group-total-count"] == str(size)
        worker, incarnation = int(labels["capstan.dev/worker"]), int(labels["capstan.dev/incarnation"])
        changes = {"phase": "Pending", "ip": None, "node": None, "waiting": GATED, "group": group}
        return make_pod(worker, incarnation, created_at=self.now, **changes)

    def _see(self, pods: list[Any]) -> None:
        known = {uid: supervisor.state for uid, supervisor in self.seen.supervisors.items()}
        states = {pod.name: known.get(pod.uid) or make_state(pod) for pod in pods if pod.phase == "Running"}
        self.seen = look(self.seen.job, pods, states)


def trained_in_full(**spec: Any) -> QueuedLife:
    """All workers of the job are admitted, and train."""
    life = QueuedLife(**spec)
    for _ in range(12):
        life.pass_time(6.0)
        life.admit(0, 1, 2, 3)
        life.train(40)
        if life.status.next_world is not None:
            for name in life.running():
                code = {"fence": life.status.fence, "code": 80, "failure": "Stopped", "message": "", "at": life.now}
                life.say(name, phase="Exited", exit=code, leaveAtCheckpoint=True)
            life.pass_time(0.1)
            life.pass_time(0.1)
            life.train(40)
    assert (life.status.phase, life.status.world) == ("Running", life.status.valid_worlds[-1])
    return life


def test_a_job_of_one_size_waits_as_one_group_and_says_for_what() -> None:
    life = QueuedLife()
    life.pass_time()
    life.pass_time()
    status = life.status
    (group,) = status.queue.groups if status.queue else ()
    assert (life.groups(), status.phase, status.reason) == ([(0, 2)], "Pending", "WaitingForQuota")
    assert status.message == (
        f"queue team-a has not admitted the group of 2 pods: kubectl describe workload {group.name}"
    )
    assert [pod.group for pod in life.seen.pods] == [group.name] * 2
    assert life.decision.create == life.decision.delete == ()


def test_the_time_in_a_queue_counts_for_no_deadline() -> None:
    life = QueuedLife(activeDeadlineSeconds=60)
    life.pass_time()
    life.pass_time()
    life.pass_time(1000.0)
    assert (life.status.reason, life.status.active_since) == ("WaitingForQuota", None)
    life.admit(0, 1)
    life.pass_time()
    life.train(1)
    life.pass_time()
    assert (life.status.phase, life.status.restarts.total) == ("Running", 0)
    life.pass_time(30.0)
    assert life.status.phase == "Running"
    life.pass_time(1001.0)
    assert (life.status.phase, life.status.reason) == ("Failed", "DeadlineExceeded")


def test_what_a_larger_world_needs_is_asked_for_when_the_smaller_one_was_let_through() -> None:
    life = QueuedLife(**ELASTIC)
    asked = []
    for worker in ((0,), (1,), (2, 3)):
        life.pass_time()
        life.pass_time()
        asked.append([pod.worker for pod in life.seen.pods if pod.waiting == GATED])
        life.admit(*worker)
    assert asked == [[0], [1], [2, 3]]
    assert life.groups() == [(0, 1), (1, 1), (2, 2)]
    assert len({pod.group for pod in life.seen.pods}) == 3


def test_a_job_trains_with_what_was_admitted_and_says_what_the_rest_waits_for() -> None:
    life = QueuedLife(**ELASTIC)
    for worker in (0, 1):
        life.pass_time()
        life.pass_time()
        life.admit(worker)
    for _ in range(3):
        life.pass_time()
        life.train(1)
    assert (life.status.phase, life.status.world) == ("Running", 2)
    rest = next(pod for pod in life.seen.pods if pod.worker == 2)
    assert life.status.size_message == (
        f"2 of 4 workers: {rest.name} waits for quota: kubectl describe workload {rest.group}"
    )


def test_a_preemption_is_no_failure_and_the_job_goes_on_when_it_is_admitted_again() -> None:
    life = trained_in_full()
    before = life.groups(), {pod.group for pod in life.seen.pods}
    life.preempt(0, 1)
    events = life.pass_time()
    assert events == [f"Preempted: queue team-a took its quota back: {EVICTED}"]
    assert (life.status.restarts.total, life.status.failure, life.status.members) == (0, None, None)
    life.pass_time()
    assert [pod["metadata"]["name"] for pod in life.decision.create] == [pod_name(JOB, n, 1) for n in (0, 1)]
    life.pass_time()
    life.pass_time(3600.0)
    assert (life.status.reason, life.status.active_since) == ("WaitingForQuota", None)
    assert (life.groups(), {pod.group for pod in life.seen.pods}) == before, "it has lost its place in the queue"
    life.admit(0, 1)
    life.pass_time()
    life.train(41)
    life.pass_time()
    record = life.recoveries[-1]
    assert (life.status.phase, life.status.fence, life.status.restarts.total) == ("Running", 2, 0)
    assert (record.cause, record.action) == ("Preempted", "Resume")
    assert record.sentence.endswith("; then queue team-a admitted its pods")
    assert record.seconds.total < 10
    assert life.status.goodput is not None
    assert life.status.goodput.seconds.queued > 3600


def test_a_preempted_part_makes_the_world_smaller_and_waits_for_its_quota() -> None:
    life = trained_in_full(**ELASTIC)
    life.preempt(2, 3)
    life.pass_time()
    life.pass_time()
    assert (life.status.world, life.status.restarts.total) == (2, 0)
    life.train(41)
    life.pass_time()
    life.pass_time()
    assert (life.status.phase, life.groups()) == ("Running", [(0, 1), (1, 1), (2, 2)])
    assert [pod.worker for pod in life.seen.pods if pod.waiting == GATED] == [2, 3]


def test_what_is_of_no_use_without_a_preempted_part_is_given_back() -> None:
    life = trained_in_full(workers={"max": 4, "min": 2}, training=ELASTIC["training"])
    life.preempt(0, 1, 2, 3)
    for pod in life.seen.pods:  # a node took one of the second group in again before the first was
        if pod.worker == 2:
            life.change_pod(pod.name, is_deleting=False, phase="Running", stopped_by_queue=None)
    for _ in range(4):
        life.pass_time()
    assert life.groups() == [(0, 2)]
    old = [pod for pod in life.seen.pods if pod.worker in (2, 3)]
    assert all(pod.is_deleting for pod in old)
    assert any(pod.is_last_of_group for pod in old), "its quota is never given back"


def broken_in_one_blow() -> QueuedLife:
    """All four workers of a job of at least two trained; those of the first group and one of the second broke together,
    and their replacements are at the gate."""
    life = trained_in_full(workers={"max": 4, "min": 2}, training=ELASTIC["training"])
    for worker in (0, 1, 2):
        broken = {"phase": "Failed", "exit_code": 137, "exit_reason": "OOMKilled", "finished_at": life.now}
        life.change_pod(pod_name(JOB, worker, 0), **broken)
    for _ in range(4):
        life.pass_time(0.3)
    assert [pod.worker for pod in life.seen.pods if pod.waiting == GATED] == [0, 1, 2]
    return life


def test_replacements_that_are_at_the_gate_for_a_moment_cost_no_quota_and_no_healthy_pod() -> None:
    life = broken_in_one_blow()
    healthy = pod_name(JOB, 3, 0)
    assert (life.groups(), healthy in life.running()) == ([(0, 2), (2, 2)], True)
    life.admit(0, 1, 2)
    for _ in range(3):
        life.pass_time()
        life.train(41)
    assert (life.status.phase, life.status.world, healthy in life.running()) == ("Running", 4, True)


def test_replacements_that_stay_at_the_gate_are_waited_for_only_so_long_with_quota_that_is_of_no_use() -> None:
    life = broken_in_one_blow()
    made_at = min(pod.created_at for pod in life.seen.pods if pod.waiting == GATED and pod.worker < 2)
    due = life.decision.requeue_after
    assert due is not None
    assert life.now + due <= made_at + 30.0
    life.pass_time(made_at + 29.9 - life.now)
    assert life.groups() == [(0, 2), (2, 2)]
    life.pass_time(0.1)
    life.pass_time(0.1)
    assert life.groups() == [(0, 2)]
    assert all(pod.is_deleting for pod in life.seen.pods if pod.worker == 3)


def test_a_replacement_is_made_when_the_pod_before_it_has_ended() -> None:
    life = trained_in_full(**ELASTIC)
    life.change_pod(pod_name(JOB, 3, 0), is_deleting=True)
    exit_ = {"fence": life.status.fence, "code": 80, "failure": "Stopped", "message": "", "at": life.now}
    for name in life.running():
        life.say(name, phase="Exited", exit=exit_)
    for _ in range(3):
        life.pass_time()
        assert life.decision.create == (), "Kueue would delete it: the group has too many"
    life.change_pod(pod_name(JOB, 3, 0), phase="Failed", exit_code=80)
    life.pass_time()
    (made,) = life.decision.create
    assert made["metadata"]["name"] == pod_name(JOB, 3, 1)
    assert made["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] == life.status.queue.groups[2].name  # type: ignore[union-attr]


def test_a_suspended_job_gives_its_quota_back_and_comes_again_as_a_new_group() -> None:
    life = trained_in_full()
    before = life.status.queue.groups[0].name  # type: ignore[union-attr]
    life.change_spec(suspend=True)
    life.pass_time()
    life.pass_time()
    for pod in life.seen.pods:
        life.change_pod(pod.name, phase="Failed", exit_code=80)
    assert any(pod.is_last_of_group for pod in life.seen.pods)
    life.pass_time()
    life.pass_time()
    assert (life.seen.pods, life.status.phase, life.groups()) == ((), "Suspended", [])
    life.change_spec(suspend=False)
    life.pass_time()
    assert life.groups() == [(0, 2)]
    assert life.status.queue.groups[0].name != before  # type: ignore[union-attr]


def test_the_groups_of_a_job_that_has_ended_or_is_deleted_are_over() -> None:
    life = trained_in_full()
    life.say(phase="Exited", exit={"fence": 1, "code": 78, "failure": "Config", "message": "", "at": life.now})
    life.pass_time()
    life.pass_time()
    assert (life.status.phase, len(life.decision.end_groups), life.groups()) == ("Failed", 1, [])
    life.pass_time()
    assert accepted(life) == "the spec is valid"
    deleted = trained_in_full()
    deleted.seen = replace(deleted.seen, job=replace(deleted.seen.job, is_deleting=True))
    decision = decide_training_job(deleted.seen, deleted.now)
    assert [end.name for end in decision.end_groups] == [pod_name(JOB, 0, 0)]


def test_another_size_or_queue_is_followed_at_once_while_nothing_was_admitted() -> None:
    life = QueuedLife(**(ELASTIC | {"workers": {"max": 4}}))
    life.pass_time()
    life.pass_time()
    life.change_spec(workers={"max": 2})
    life.pass_time()
    assert life.groups() == [(0, 2)]
    for _ in range(3):
        life.pass_time()
    assert [(pod.worker, pod.is_deleting) for pod in life.seen.pods] == [(0, False), (1, False)]
    assert {pod.group for pod in life.seen.pods} == {life.status.queue.groups[0].name}  # type: ignore[union-attr]
    life.seen = replace(life.seen, job=replace(life.seen.job, queue=None))
    life.decide(life.now + 1)
    assert (life.groups(), [deletion.name for deletion in life.decision.delete]) == (
        [],
        [p.name for p in life.seen.pods],
    )


def test_what_was_admitted_stays_as_it_is_and_what_it_does_not_follow_is_said() -> None:
    life = trained_in_full(workers={"max": 4}, training=ELASTIC["training"])
    life.change_spec(workers={"max": 2})
    life.pass_time()
    assert life.groups() == [(0, 4)]
    assert accepted(life) == (
        "queue team-a keeps quota for 2 more pods, in a group of fixed size; to give it back, set spec.suspend to "
        "true, and to false again when no pod is left"
    )
    life = trained_in_full()
    life.seen = replace(life.seen, job=replace(life.seen.job, queue="team-b", priority_class="high"))
    life.pass_time()
    assert accepted(life) == (
        "the pods stay in queue team-a, which admitted them; to have queue team-b with priority class high, set "
        "spec.suspend to true, and to false again when no pod is left"
    )
    unqueued = Life()
    unqueued.seen = replace(unqueued.seen, job=replace(unqueued.seen.job, queue="team-a"))
    unqueued.decide(30.0)
    assert unqueued.status.queue is None
    assert accepted(unqueued).startswith("queue team-a admits pods that are made anew; to have all of them wait in it")


def test_a_larger_max_asks_for_what_is_new_alone() -> None:
    life = trained_in_full(workers={"max": 2}, training=ELASTIC["training"])
    life.change_spec(workers={"max": 4})
    life.pass_time()
    assert (life.groups(), [pod["metadata"]["name"] for pod in life.decision.create]) == (
        [(0, 2), (2, 2)],
        [pod_name(JOB, n, 0) for n in (2, 3)],
    )
    assert (life.status.phase, life.decision.delete) == ("Running", ())


def accepted(life: Life) -> str:
    return next(one.message for one in life.status.conditions if one.type == "Accepted")
