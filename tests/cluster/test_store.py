"""What the store lets in, what wakes a job, and what a snapshot shows."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import msgspec
import orjson
import pytest

from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.cluster.objects import is_newer
from capstan_operator.cluster.pods import Pod
from capstan_operator.cluster.statuses import read_status
from capstan_operator.cluster.store import Store
from capstan_operator.cluster.work_queue import ObjectKey, Priority
from capstan_operator.metrics import Metrics
from capstan_operator.observe import ObservedPod, ObservedSupervisor, OperatorSettings
from capstan_runtime.contract.state import Phase, State
from tests.support.small_decide import job_document

KEY = ObjectKey("default", "job")


class World:
    """A store, and everything it woke."""

    def __init__(self) -> None:
        self.woken: list[tuple[ObjectKey, Priority]] = []
        self.metrics = Metrics()
        self.store = Store(
            lambda key, priority: self.woken.append((key, priority)),
            token_of=lambda uid: f"token of {uid}",
            settings=OperatorSettings(),
            metrics=self.metrics,
        )

    def wakes(self) -> list[Priority]:
        """Why the job was woken since the last call."""
        woken, self.woken = self.woken, []
        assert {key for key, _ in woken} <= {KEY}
        return [priority for _, priority in woken]

    def pods(self) -> list[str]:
        observed = self.store.observe(KEY)
        assert observed is not None
        return [pod.name for pod in observed.pods]


@pytest.fixture
def world() -> World:
    world = World()
    world.store.jobs.put(job())
    world.wakes()
    return world


def job(version: int = 1, uid: str = "job-uid", **changes: Any) -> dict[str, Any]:
    document = job_document("job")
    document["metadata"] |= {
        "uid": uid,
        "resourceVersion": str(version),
        "generation": 1,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    return document | changes


def pod(version: int = 1, name: str = "job-0-0", uid: str = "pod-uid", owner: str = "job-uid", **status: Any) -> Pod:
    document = {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": uid,
            "resourceVersion": str(version),
            "creationTimestamp": "2026-01-01T00:00:10Z",
            "labels": {"capstan.dev/worker": name.split("-")[1], "capstan.dev/incarnation": name.split("-")[2]},
            "ownerReferences": [
                {
                    "apiVersion": "capstan.dev/v1alpha1",
                    "kind": "TrainingJob",
                    "name": "job",
                    "uid": owner,
                    "controller": True,
                }
            ],
        },
        "spec": {
            "nodeName": "node-1",
            "containers": [{"name": "side", "image": "s:1"}, {"name": "trainer", "image": "t:1"}],
        },
        "status": {"phase": "Pending"} | status,
    }
    return msgspec.json.decode(orjson.dumps(document), type=Pod)


def exited(code: int, message: str = "", reason: str = "Error") -> list[dict[str, Any]]:
    terminated = {"exitCode": code, "reason": reason, "message": message, "finishedAt": "1970-01-01T00:00:30Z"}
    return [
        {"name": "sidecar", "state": {"terminated": {"exitCode": 99}}},
        {"name": "trainer", "state": {"terminated": terminated}},
    ]


def test_a_new_job_a_new_spec_and_a_new_status_wake_it(world: World) -> None:
    changed = job(2)
    changed["metadata"]["generation"] = 2
    world.store.jobs.put(changed)
    assert world.wakes() == [Priority.NORMAL]
    status = job(3, status={"fence": 1})
    status["metadata"]["generation"] = 2
    world.store.jobs.put(status)
    assert world.wakes() == [Priority.NORMAL]


def test_labels_annotations_and_the_same_thing_again_do_not_wake_it(world: World) -> None:
    changed = job(2)
    changed["metadata"]["annotations"] = {"a": "b"}
    world.store.jobs.put(changed)
    world.store.jobs.put(changed)
    assert world.wakes() == []


def test_an_event_that_was_under_way_does_not_undo_our_own_status_write(world: World) -> None:
    world.store.jobs.put(job(9, status={"fence": 2}))
    world.wakes()
    world.store.jobs.put(job(8, status={"fence": 1}))
    observed = world.store.observe(KEY)
    assert observed is not None
    assert (observed.job.status.fence, world.wakes()) == (2, [])


def test_a_deleted_job_does_not_come_back_with_a_late_answer(world: World) -> None:
    world.store.jobs.remove(KEY, "job-uid")
    world.store.jobs.put(job(99))
    assert world.store.observe(KEY) is None
    assert world.wakes() == [Priority.NORMAL]


def test_a_job_made_anew_under_the_same_name_has_none_of_the_old_pods(world: World) -> None:
    world.store.put(pod())
    world.store.jobs.put(job(5, uid="second"))
    assert world.pods() == []
    world.store.jobs.remove(KEY, "job-uid")
    observed = world.store.observe(KEY)
    assert observed is not None
    assert (observed.job.uid, observed.token) == ("second", "token of second")


def test_pods_may_come_before_their_job() -> None:
    world = World()
    world.store.put(pod())
    world.store.jobs.put(job())
    assert world.pods() == ["job-0-0"]


def test_pods_are_sorted_by_worker_then_incarnation(world: World) -> None:
    for number, name in enumerate(["job-10-0", "job-2-1", "job-2-0"]):
        world.store.put(pod(name=name, uid=str(number)))
    assert world.pods() == ["job-2-0", "job-2-1", "job-10-0"]


def test_the_facts_of_a_pod_are_complete(world: World) -> None:
    final = State(pod="job-0-0", uid="job-uid", fence=3, phase=Phase.EXITED)
    sidecar, trainer = exited(75, final.model_dump_json(by_alias=True))
    statuses = [sidecar, trainer | {"imageID": "docker-pullable://registry/trainer@sha256:0123"}]
    world.store.put(pod(phase="Failed", podIP="10.0.0.1", containerStatuses=statuses))
    observed = world.store.observe(KEY)
    assert observed is not None
    assert observed.pods == (
        ObservedPod(
            name="job-0-0",
            uid="pod-uid",
            worker=0,
            incarnation=0,
            phase="Failed",
            is_deleting=False,
            created_at=1767225610.0,
            ip="10.0.0.1",
            image_id="registry/trainer@sha256:0123",
            node="node-1",
            image="t:1",
            finished_at=30.0,
            waiting=None,
            exit_code=75,
            exit_reason="Error",
            final=final,
        ),
    )


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"containerStatuses": exited(137, reason="OOMKilled")}, "OOMKilled"),
        ({"reason": "Evicted", "containerStatuses": exited(1)}, "Evicted"),
        (
            {
                "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}],
                "containerStatuses": exited(143),
            },
            "PreemptionByScheduler",
        ),
        ({}, None),
    ],
)
def test_the_reason_of_an_end_is_the_one_nearest_to_the_cause(
    world: World, status: dict[str, Any], expected: str | None
) -> None:
    world.store.put(pod(phase="Failed", **status))
    observed = world.store.observe(KEY)
    assert observed is not None
    assert observed.pods[0].exit_reason == expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"containerStatuses": [{"name": "trainer", "state": {"waiting": {"reason": "ContainerCreating"}}}]}, None),
        (
            {
                "containerStatuses": [
                    {"name": "trainer", "state": {"waiting": {"reason": "ErrImagePull", "message": "no"}}}
                ]
            },
            "ErrImagePull: no",
        ),
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3"}]},
            "Unschedulable: 0/3",
        ),
    ],
)
def test_what_a_pod_waits_for_is_told_only_when_something_is_wrong(
    world: World, status: dict[str, Any], expected: str | None
) -> None:
    world.store.put(pod(**status))
    observed = world.store.observe(KEY)
    assert observed is not None
    assert observed.pods[0].waiting == expected


@pytest.mark.parametrize(
    ("phase", "status", "expected"),
    [("Pending", "False", True), ("Pending", "True", False), ("Pending", None, False), ("Succeeded", "False", False)],
)
def test_a_node_says_whether_it_has_what_a_pod_mounts(
    world: World, phase: str, status: str | None, expected: bool
) -> None:
    told = [{"type": "PodReadyToStartContainers", "status": status}] if status else []
    world.store.put(pod(phase=phase, conditions=told))
    observed = world.store.observe(KEY)
    assert observed is not None
    assert observed.pods[0].is_unprepared is expected


@pytest.mark.parametrize("message", ['{"pod": 1}', '{"pod"' + "x" * 20000])
def test_a_termination_message_that_cannot_be_read_is_counted_and_passed_over(world: World, message: str) -> None:
    world.store.put(pod(phase="Failed", containerStatuses=exited(1, message)))
    observed = world.store.observe(KEY)
    assert observed is not None
    assert (observed.pods[0].final, observed.pods[0].exit_code) == (None, 1)
    counted = world.metrics.registry.get_sample_value(
        "capstan_operator_bad_documents_total", {"what": "termination_message"}
    )
    assert counted == 1


@pytest.mark.parametrize(
    ("message", "lines"),
    [
        ("", ()),
        ("killed", ("killed",)),
        ('{"level": "error"}\n', ('{"level": "error"}',)),
        (
            "Traceback:\n\n  File x\r\n\x1b[31mModuleNotFoundError: no torch\x1b[0m\n",
            ("Traceback:", "File x", "[31mModuleNotFoundError: no torch[0m"),
        ),
        ("\n".join(map(str, range(50))), tuple(map(str, range(40, 50)))),
        ("x" * 20000, ("x" * 200,)),
    ],
)
def test_the_end_of_a_log_in_the_place_of_last_words_is_kept(
    world: World, message: str, lines: tuple[str, ...]
) -> None:
    world.store.put(pod(phase="Failed", containerStatuses=exited(1, message)))
    observed = world.store.observe(KEY)
    assert observed is not None
    assert (observed.pods[0].final, observed.pods[0].last_lines) == (None, lines)
    assert "bad_documents_total{" not in world.metrics.render().decode()


def test_kubelet_noise_does_not_wake_the_job(world: World) -> None:
    world.store.put(pod(1, phase="Running", podIP="10.0.0.1"))
    world.wakes()
    world.store.put(pod(2, phase="Running", podIP="10.0.0.1", conditions=[{"type": "Ready", "status": "True"}]))
    assert world.wakes() == []


def test_a_failed_pod_and_a_vanished_pod_are_repairs(world: World) -> None:
    world.store.put(pod(1))
    world.store.put(pod(2, phase="Failed"))
    world.store.remove(pod(3, phase="Failed"))
    assert world.wakes() == [Priority.NORMAL, Priority.REPAIR, Priority.REPAIR]


def test_a_late_answer_to_a_create_does_not_bring_a_deleted_pod_back(world: World) -> None:
    world.store.remove(pod(9))
    world.store.put(pod(5))
    assert world.pods() == []


def test_an_older_pod_event_is_dropped(world: World) -> None:
    world.store.put(pod(5, phase="Running"))
    world.store.put(pod(4, phase="Pending"))
    observed = world.store.observe(KEY)
    assert observed is not None
    assert observed.pods[0].phase == "Running"


def test_a_relist_drops_what_vanished_and_keeps_what_is_newer_than_the_list(world: World) -> None:
    world.store.put(pod(5, name="job-0-0", uid="a"))
    world.store.put(pod(6, name="job-1-0", uid="b"))
    world.store.put(pod(21, name="job-2-0", uid="c"))  # the answer to a create, made while the list was read
    world.wakes()
    world.store.replace([pod(6, name="job-1-0", uid="b"), pod(9, name="job-3-0", uid="d")], "20")
    assert world.pods() == ["job-1-0", "job-2-0", "job-3-0"]
    assert world.wakes() == [Priority.REPAIR, Priority.NORMAL]


def test_pods_of_strangers_are_left_alone(world: World) -> None:
    stranger = pod()
    stranger.metadata.owner_references = None
    unlabelled = pod()
    unlabelled.metadata.labels = {}
    for other in (stranger, unlabelled):
        world.store.put(other)
    assert (world.pods(), world.wakes()) == ([], [])


def test_supervisors_are_remembered_for_as_long_as_their_pod(world: World) -> None:
    world.store.put(pod(1, phase="Running", podIP="10.0.0.1"))
    (record,) = world.store.pods_to_ask()
    state = State(pod="job-0-0", uid="job-uid")
    assert world.store.put_state(record, state, 5.0)
    observed = world.store.observe(KEY)
    assert observed is not None
    assert observed.supervisors == {"pod-uid": ObservedSupervisor(state, 5.0)}
    world.store.remove(pod(2))
    world.store.put(pod(3, uid="next", phase="Running", podIP="10.0.0.1"))
    assert not world.store.put_state(record, state, 6.0)
    observed = world.store.observe(KEY)
    assert observed is not None
    assert observed.supervisors == {}


def test_steps_and_metrics_alone_are_no_news(world: World) -> None:
    world.store.put(pod(1, phase="Running", podIP="10.0.0.1"))
    (record,) = world.store.pods_to_ask()
    state = State(pod="job-0-0", uid="job-uid", phase=Phase.TRAINING, fence=1)
    assert world.store.put_state(record, state, 1.0)
    assert not world.store.put_state(record, state.model_copy(update={"step": 7, "metrics": {"loss": 1.0}}), 2.0)
    assert world.store.put_state(record, state.model_copy(update={"phase": Phase.SAVING}), 3.0)
    observed = world.store.observe(KEY)
    assert observed is not None
    assert observed.supervisors["pod-uid"].fetched_at == 3.0


def test_the_newest_six_busy_seconds_of_one_attempt_are_kept(world: World) -> None:
    world.store.put(pod(1, phase="Running", podIP="10.0.0.1"))
    (record,) = world.store.pods_to_ask()

    def say(fence: int, step: int, **metrics: float) -> tuple[float, ...]:
        state = State(pod="job-0-0", uid="job-uid", fence=fence, phase=Phase.TRAINING, step=step, metrics=metrics)
        world.store.put_state(record, state, 9.0)
        observed = world.store.observe(KEY)
        assert observed is not None
        return observed.supervisors["pod-uid"].busy_seconds

    assert say(1, 1) == ()
    assert say(1, 2, busy_seconds=0.1) == (0.1,)
    assert say(1, 3, busy_seconds=0.1) == (0.1,)  # not measured anew: not another look
    assert [say(1, step, busy_seconds=step / 10)[-1] for step in (3, 4, 5, 6, 7)] == [0.3, 0.4, 0.5, 0.6, 0.7]
    assert say(1, 8, busy_seconds=0.8) == (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    assert say(2, 1, busy_seconds=0.2) == (0.2,)


def test_a_job_takes_hardly_more_memory_than_its_json(world: World) -> None:
    documents = [
        job(1, uid=f"uid-{number}", status={"phase": "Running", "message": "m" * 900})
        | {"metadata": {"name": f"job-{number}", "namespace": "default", "uid": f"{number}", "resourceVersion": "1"}}
        for number in range(200)
    ]
    text_bytes = sum(len(orjson.dumps(document)) for document in documents)
    tracemalloc.start()
    try:
        for document in documents:
            world.store.jobs.put(document)
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < 2 * text_bytes


def silences(world: World) -> tuple[dict[str, float], frozenset[str]]:
    observed = world.store.observe(KEY)
    assert observed is not None
    return dict(observed.silent_since), observed.refusing


def test_silence_is_measured_from_its_first_unanswered_request_and_ends_with_an_answer(world: World) -> None:
    world.store.put(pod(1, phase="Running", podIP="10.0.0.1"))
    (record,) = world.store.pods_to_ask()
    assert [world.store.put_silence(record, at) for at in (10.0, 12.0, 14.0)] == [False, True, False]
    assert silences(world) == ({"pod-uid": 10.0}, frozenset())
    state = State(pod="job-0-0", uid="job-uid")
    assert world.store.put_state(record, state, 15.0)
    assert [world.store.put_silence(record, at) for at in (16.0, 18.0)] == [False, True]
    assert world.store.put_state(record, state, 19.0)  # the same answer, but it is back
    assert silences(world) == ({}, frozenset())


def test_one_lost_request_is_no_silence(world: World) -> None:
    world.store.put(pod(1, phase="Running", podIP="10.0.0.1"))
    (record,) = world.store.pods_to_ask()
    state = State(pod="job-0-0", uid="job-uid")
    assert world.store.put_state(record, state, 9.0)
    assert not world.store.put_silence(record, 10.0)
    assert silences(world) == ({}, frozenset())
    assert not world.store.put_state(record, state, 11.0)


def test_a_refused_token_is_told_from_silence(world: World) -> None:
    world.store.put(pod(1, phase="Running", podIP="10.0.0.1"))
    (record,) = world.store.pods_to_ask()
    news = [world.store.put_silence(record, at, refuses_token=at > 12.0) for at in (10.0, 12.0, 14.0, 16.0)]
    assert news == [False, True, True, False]
    assert silences(world) == ({"pod-uid": 10.0}, frozenset({"pod-uid"}))


def test_only_running_pods_of_unfinished_jobs_are_asked(world: World) -> None:
    world.store.put(pod(1, name="job-0-0", uid="a", phase="Running", podIP="10.0.0.1"))
    world.store.put(pod(1, name="job-1-0", uid="b", phase="Pending"))
    world.store.put(pod(1, name="job-2-0", uid="c", phase="Succeeded", podIP="10.0.0.2"))
    assert [record.pod.name for record in world.store.pods_to_ask()] == ["job-0-0"]
    world.store.jobs.put(job(2, status={"finishedAt": "2026-01-01T00:00:00Z"}))
    assert list(world.store.pods_to_ask()) == []


def test_a_status_that_was_tampered_with_loses_only_what_cannot_be_read() -> None:
    status, dropped = read_status(
        {"fence": 7, "step": "many", "fromTheFuture": 1, "phase": "Running"}, TrainingJobStatus
    )
    assert (status.fence, status.step, status.phase, dropped) == (7, None, "Running", ["step"])


def test_versions_are_compared_as_numbers_and_what_is_no_number_counts_as_news() -> None:
    assert is_newer("10", "9")
    assert not is_newer("9", "10")
    assert not is_newer("9", "9")
    assert is_newer("b", "a")
    assert not is_newer("a", "a")


def test_a_snapshot_is_not_changed_by_what_comes_later(world: World) -> None:
    before = world.store.observe(KEY)
    assert before is not None
    world.store.put(pod())
    world.store.jobs.put(job(5, status={"fence": 9}))
    assert before == replace(before, pods=(), supervisors={}, silent_since={})
    assert before.job.status.fence == 0
