"""Benchmarks under a whole operator, against an API server in this process."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from capstan_operator import reconcile_benchmark
from capstan_operator.api.meta import API_VERSION
from capstan_operator.cluster.kinds import (
    BENCHMARKS,
    CONFIG_MAPS,
    EVENTS,
    INFERENCE_SERVICES,
    PODS,
    TRAINING_JOBS,
    Resource,
)
from capstan_operator.decide.bench import children
from tests.support.bench_machine import Machine, env_of, leave_jobs_alone, running, task_of
from tests.support.benchmarks import job_of, spec_of, trial_end
from tests.support.fake_api import FakeApi, names
from tests.support.operators import eventually, run_one

Document = dict[str, Any]
SERVICE: Document = {
    "modelRef": {
        "uri": {"store": {"claim": {"name": "c"}}, "run": "default/train/uid", "digest": "blake3:" + 64 * "0"}
    },
    "runtime": "torch",
}
LOAD: Document = {"rates": [5], "scenario": [{"name": "predict", "path": "/v2/health/live", "method": "GET"}]}


def benchmark(name: str = "bench", **spec: Any) -> Document:
    return {"metadata": {"name": name, "namespace": "default"}, "spec": spec_of(**spec)}


def status_of(api: FakeApi, name: str = "bench") -> Document:
    status: Document = api.get(BENCHMARKS, name).get("status", {})
    return status


def is_in(api: FakeApi, phase: str, name: str = "bench") -> Callable[[], bool]:
    return lambda: status_of(api, name).get("phase") == phase


@pytest.fixture(autouse=True)
def as_talkative_as_in_a_pod(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


async def test_runs_are_made_one_after_the_other_and_reported(api: FakeApi) -> None:
    machine = Machine(api)
    async with running(api, machine) as operator:
        api.put(BENCHMARKS, benchmark())
        await eventually(is_in(api, "Succeeded"))
        await eventually(lambda: "Reported" in [event["reason"] for event in api.of(EVENTS)])
        assert operator.metrics.registry.get_sample_value("capstan_benchmarks", {"phase": "Succeeded"}) == 1
    status = status_of(api)
    report = status["report"]["log"]
    assert machine.most_at_once == 1
    assert [(one["trial"], one["attempt"]) for one in status["trials"]] == [("t00", 1), ("t01", 1)]
    assert (status["result"], status["progress"]["summary"]) == ("100 samples/s ±1 %", "2/2")
    assert names(api.of(PODS)) == [report, "bench-t01"]
    tasks = [task_of(call.body) for call in api.calls if (call.verb, call.resource) == ("create", "pods")]
    assert [task["trial"]["trial"] for task in tasks[:-1]] == ["t00", "t01"]
    assert [ref["repetition"] for ref in tasks[-1]["report"]["trials"]] == [0, 1]
    reasons = [event["reason"] for event in api.of(EVENTS)]
    assert reasons == ["Begun", "Reported"]
    assert [call for call in api.calls if call.status == 403] == []


async def test_a_run_that_fails_is_repeated_and_told(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pauses(monkeypatch)
    machine = Machine(api)
    machine.failing["bench-t00"] = (1, trial_end("RuntimeError: no luck", is_ok=False))
    async with running(api, machine):
        api.put(BENCHMARKS, benchmark())
        await eventually(is_in(api, "Succeeded"))
        await eventually(lambda: "Reported" in [event["reason"] for event in api.of(EVENTS)])
    status = status_of(api)
    assert [(one["trial"], one["attempt"]) for one in status["trials"]] == [("t00", 2), ("t01", 1)]
    repeat = {"trial": "t00", "attempt": 1, "reason": "pod bench-t00: RuntimeError: no luck"}
    assert (status["repeats"], status["repeated"]) == ([repeat], 1)
    assert "bench-t00" in names(api.of(PODS)), "it stays for its log"
    events = [(event["type"], event["reason"]) for event in api.of(EVENTS)]
    assert events == [("Normal", "Begun"), ("Warning", "Repeated"), ("Normal", "Reported")]
    (report,) = [task_of(pod)["report"] for pod in api.of(PODS) if "-report-" in pod["metadata"]["name"]]
    assert report["repeats"] == [repeat]


async def test_a_run_that_can_never_work_ends_the_benchmark_at_once(api: FakeApi) -> None:
    machine = Machine(api)
    machine.failing["bench-t00"] = (78, trial_end("a field is wrong", is_ok=False, is_final=True))
    async with running(api, machine):
        api.put(BENCHMARKS, benchmark())
        await eventually(is_in(api, "Failed"))
        await asyncio.sleep(0.3)
    assert status_of(api)["reason"] == "ConfigError"
    assert names(api.of(PODS)) == ["bench-t00"]


async def test_runs_that_are_jobs_are_made_as_jobs_and_only_the_last_stays(api: FakeApi) -> None:
    machine = Machine(api)
    async with running(api, machine):
        api.put(BENCHMARKS, benchmark(workload={"training": {"batchSizes": [16, 32]}}, job=job_of()))
        await eventually(is_in(api, "Succeeded"), seconds=30)
        await eventually(lambda: names(api.of(TRAINING_JOBS)) == ["bench-t03"])
    made = [call.body for call in api.calls if (call.verb, call.resource) == ("create", "trainingjobs")]
    assert [job["metadata"]["name"] for job in made] == ["bench-t00", "bench-t01", "bench-t02", "bench-t03"]
    sizes = [job["spec"]["training"]["globalBatchSize"] for job in made]
    assert sorted(sizes) == [16, 16, 32, 32]
    assert [f"batchSize={size}" for size in sizes] == [one["case"] for one in status_of(api)["trials"]]
    assert {job["metadata"]["ownerReferences"][0]["kind"] for job in made} == {"Benchmark"}
    (report,) = [task_of(pod)["report"] for pod in api.of(PODS)]
    last = api.get(TRAINING_JOBS, "bench-t03")["metadata"]
    assert report["trials"][3]["job"] == f"bench-t03/{last['uid']}"
    assert [call for call in api.calls if call.status == 403] == []


async def test_load_is_put_on_a_service_of_each_runs_own(api: FakeApi) -> None:
    machine = Machine(api)
    async with running(api, machine):
        api.put(BENCHMARKS, benchmark(workload={"serving": {"service": SERVICE} | LOAD}))
        await eventually(is_in(api, "Succeeded"), seconds=30)
        await eventually(lambda: api.of(INFERENCE_SERVICES) == [])
    tasks = [task_of(call.body) for call in api.calls if (call.verb, call.resource) == ("create", "pods")]
    urls = [f"http://bench-t0{place}.default.svc:8480" for place in range(2)]
    assert [task["trial"]["url"] for task in tasks if "trial" in task] == urls
    assert [ref["service"] for ref in tasks[-1]["report"]["trials"]] == ["bench-t00", "bench-t01"]


async def test_ranks_meet_at_rank_0(api: FakeApi) -> None:
    machine = Machine(api)
    async with running(api, machine):
        workload = {"collectives": {"framework": {"flax": {}}, "workers": 3}}
        api.put(BENCHMARKS, benchmark(workload=workload, repetitions=1))
        await eventually(is_in(api, "Succeeded"))
    lead, *others = (api.get(PODS, f"bench-t00-r{rank}") for rank in range(3))
    meeting = {env_of(pod)["CAPSTAN_BENCH_COORDINATOR"] for pod in others}
    assert meeting == {f"{lead['status']['podIP']}:8535"}
    assert env_of(lead)["CAPSTAN_BENCH_COORDINATOR"] == "$(CAPSTAN_POD_IP):8535"
    assert [task_of(pod)["trial"].get("rank", 0) for pod in (lead, *others)] == [0, 1, 2]


async def test_an_operator_that_is_killed_between_runs_loses_none_and_repeats_none(api: FakeApi) -> None:
    machine = Machine(api)
    api.put(BENCHMARKS, benchmark(repetitions=6))
    for done in (2, 4):
        async with running(api, machine):
            await eventually(lambda done=done: status_of(api).get("progress", {}).get("done", 0) >= done)
    async with running(api, machine):
        await eventually(is_in(api, "Succeeded"))
    created = [call.body["metadata"]["name"] for call in api.calls if (call.verb, call.resource) == ("create", "pods")]
    assert created[:-1] == [f"bench-t0{place}" for place in range(6)]
    assert status_of(api)["repeated"] == 0


async def test_a_restarted_operator_writes_nothing_to_a_benchmark_that_is_done(api: FakeApi) -> None:
    machine = Machine(api)
    api.put(BENCHMARKS, benchmark())
    async with running(api, machine):
        await eventually(is_in(api, "Succeeded"))
        await asyncio.sleep(0.3)
    before = len(api.calls)
    async with running(api, machine) as operator:
        await eventually(lambda: operator.value("reconciles_total", result="unchanged") >= 1)
        await asyncio.sleep(0.3)
    assert [call for call in api.calls[before:] if call.is_write and call.resource != "leases"] == []


async def test_lost_answers_make_no_second_child(api: FakeApi) -> None:
    machine = Machine(api)
    api.fail("create", "pods", times=2, loses_answer=True)
    async with running(api, machine):
        api.put(BENCHMARKS, benchmark())
        await eventually(is_in(api, "Succeeded"), seconds=30)
    created = [call.body["metadata"]["name"] for call in api.writes("pods") if call.verb == "create"]
    assert sorted(created) == sorted(set(created))
    assert status_of(api)["repeated"] == 0


async def test_what_the_api_server_refuses_is_told_until_it_takes_it(api: FakeApi) -> None:
    fault = api.fail("create", "pods", times=1000, status=403)
    async with running(api, Machine(api)):
        api.put(BENCHMARKS, benchmark())
        await eventually(lambda: status_of(api).get("reason") == "ChildrenRefused")
        assert (status_of(api)["phase"], status_of(api)["repeated"]) == ("Running", 0)
        api.faults.remove(fault)
        await eventually(is_in(api, "Succeeded"), seconds=30)
    reasons = [event["reason"] for event in api.of(EVENTS)]
    assert reasons.count("ChildrenRefused") == 1


@pytest.mark.parametrize(("resource", "workload"), [(PODS, {}), (TRAINING_JOBS, {"workload": {"training": {}}})])
async def test_somebody_elses_object_of_the_name_is_never_touched(
    api: FakeApi, resource: Resource, workload: Document
) -> None:
    stranger = api.put(resource, {"metadata": {"name": "bench-t00", "namespace": "default"}, "spec": {}, "status": {}})
    job = {"job": job_of()} if workload else {}
    async with run_one(api.kubeconfig, leave_jobs_alone):
        api.put(BENCHMARKS, benchmark(**workload, **job))
        await eventually(lambda: status_of(api).get("reason") == "NameTaken")
        assert status_of(api)["message"] == (
            f"{resource.kind} default/bench-t00 exists and is not this Benchmark's (it has no owner); delete it or "
            "rename the Benchmark"
        )
        assert api.get(resource, "bench-t00") == stranger


async def test_a_benchmark_made_anew_under_its_name_waits_for_the_old_ones_pods_and_begins_anew(api: FakeApi) -> None:
    owner = {"apiVersion": API_VERSION, "kind": "Benchmark", "name": "bench", "uid": "old", "controller": True}
    labels = {"app.kubernetes.io/managed-by": "capstan", "capstan.dev/benchmark": "bench", "capstan.dev/trial": "t00"}
    left = {"name": "bench-t00", "namespace": "default", "uid": "left", "resourceVersion": "7", "labels": labels}
    ended = {"phase": "Succeeded"}
    # Past the garbage collector of the fake, which would take it at once.
    api.objects["pods", "default", "bench-t00"] = {"metadata": left | {"ownerReferences": [owner]}, "status": ended}
    async with running(api, Machine(api)):
        api.put(BENCHMARKS, benchmark(repetitions=1))
        await eventually(lambda: status_of(api).get("reason") == "PredecessorLeaving")
        assert status_of(api)["trials"] == [], "what another one measured does not count"
        api.remove(PODS, "default", "bench-t00")
        await eventually(is_in(api, "Succeeded"), seconds=30)
    uid = api.get(BENCHMARKS, "bench")["metadata"]["uid"]
    assert {pod["metadata"]["ownerReferences"][0]["uid"] for pod in api.of(PODS)} == {uid}
    assert ([one["trial"] for one in status_of(api)["trials"]], status_of(api)["repeated"]) == (["t00"], 0)


async def test_another_gate_is_judged_by_a_report_alone(api: FakeApi) -> None:
    machine = Machine(api)
    machine.verdict = "Regressed"
    async with running(api, machine):
        api.put(BENCHMARKS, benchmark("before", repetitions=5))
        against = {"benchmark": {"name": "before"}}
        api.put(BENCHMARKS, benchmark(repetitions=5, baseline=against, gate={"minimumEffectPercent": 1}))
        await eventually(lambda: status_of(api).get("verdict") == "Regressed", seconds=30)
        first = status_of(api)
        machine.verdict = "Passed"
        gate = {"minimumEffectPercent": 30}
        api.change(BENCHMARKS, "default", "bench", lambda one: one["spec"].update(gate=gate))
        await eventually(lambda: status_of(api).get("verdict") == "Passed")
        await eventually(lambda: "Passed" in [event["reason"] for event in api.of(EVENTS)])
    second = status_of(api)
    assert (second["trials"], second["startedAt"]) == (first["trials"], first["startedAt"])
    assert second["report"]["log"] != first["report"]["log"]
    told = [(event["type"], event["reason"]) for event in api.of(EVENTS)]
    assert ("Warning", "Regressed") in told
    assert ("Normal", "Passed") in told
    task = task_of(api.get(PODS, second["report"]["log"]))["report"]
    assert task["gate"]["minimumEffectPercent"] == 30
    assert task["baseline"]["benchmark"]["uid"] == api.get(BENCHMARKS, "before")["metadata"]["uid"]


async def test_a_baseline_is_waited_for_and_then_measured_in_turns(api: FakeApi) -> None:
    machine = Machine(api)
    async with running(api, machine):
        api.put(BENCHMARKS, benchmark(baseline={"benchmark": {"name": "before", "rerun": True}}))
        await eventually(lambda: status_of(api).get("reason") == "BaselineNotFound")
        assert (status_of(api)["phase"], api.of(PODS)) == ("Pending", [])
        api.put(BENCHMARKS, benchmark("before", pods={"image": "before:1"}, suspend=True))
        await eventually(is_in(api, "Succeeded"))
    runs = [call.body for call in api.calls if (call.verb, call.resource) == ("create", "pods")][:-1]
    images = [run["spec"]["containers"][0]["image"] for run in runs]
    assert [one["arm"] for one in status_of(api)["trials"]] == ["candidate", "baseline", "baseline", "candidate"]
    assert [image == "before:1" for image in images] == [False, True, True, False]


async def test_a_kept_baseline_is_looked_for_before_the_first_run(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile_benchmark, "KEPT_SECONDS", 0.05)
    async with running(api, Machine(api)):
        api.put(BENCHMARKS, benchmark(baseline={"configMap": {"name": "kept"}}))
        await eventually(lambda: status_of(api).get("reason") == "BaselineNotFound")
        kept = {"metadata": {"name": "kept", "namespace": "default"}, "data": {"result.json": "nothing"}}
        api.put(CONFIG_MAPS, kept)
        await eventually(lambda: status_of(api).get("reason") == "BaselineUnfit")
        assert (status_of(api)["phase"], api.of(PODS)) == ("Pending", [])
        result = json.dumps({"schemaVersion": 1, "workload": "roofline"}).encode()
        api.put(CONFIG_MAPS, kept | {"data": None, "binaryData": {"result.json": base64.b64encode(result).decode()}})
        await eventually(is_in(api, "Succeeded"))
    asked = [(call.verb, call.resource) for call in api.calls]
    assert ("get", "configmaps") not in asked[asked.index(("create", "pods")) :], "once begun, it is not read again"


async def test_without_the_right_to_read_it_a_kept_baseline_is_left_to_the_report(api: FakeApi) -> None:
    api.fail("get", "configmaps", times=100, status=403)
    async with running(api, Machine(api)):
        api.put(BENCHMARKS, benchmark(baseline={"configMap": {"name": "kept"}}))
        await eventually(is_in(api, "Succeeded"))


async def test_a_suspended_benchmark_frees_the_machine_and_goes_on_later(api: FakeApi) -> None:
    machine = Machine(api)
    machine.is_stopped = True
    async with running(api, machine):
        api.put(BENCHMARKS, benchmark())
        await eventually(lambda: names(api.of(PODS)) == ["bench-t00"])
        api.change(BENCHMARKS, "default", "bench", lambda one: one["spec"].update(suspend=True))
        await eventually(lambda: api.of(PODS) == [] and is_in(api, "Suspended")())
        machine.is_stopped = False
        api.change(BENCHMARKS, "default", "bench", lambda one: one["spec"].update(suspend=False))
        await eventually(is_in(api, "Succeeded"))
    assert status_of(api)["repeated"] == 0


async def test_a_ttl_removes_pods_and_jobs_and_leaves_the_benchmark(api: FakeApi) -> None:
    async with running(api, Machine(api)):
        api.put(BENCHMARKS, benchmark(workload={"training": {}}, job=job_of(), ttlSecondsAfterFinished=1))
        await eventually(is_in(api, "Succeeded"))
        await eventually(lambda: api.of(PODS) == api.of(TRAINING_JOBS) == [])
        await asyncio.sleep(0.3)
    assert status_of(api)["phase"] == "Succeeded"


async def test_a_bad_spec_is_explained_and_nothing_is_made(api: FakeApi) -> None:
    async with running(api, Machine(api)):
        api.put(BENCHMARKS, benchmark(workload={"scaling": {"workers": [1, 3]}}, job=job_of()))
        await eventually(is_in(api, "Invalid"))
    assert status_of(api)["message"] == (
        "spec.job.training: globalBatchSize 64 is not a multiple of virtualRanks 3; choose 63 or 66 (for workers=3, "
        "mode=strong)"
    )
    assert api.of(TRAINING_JOBS) == []


async def test_benchmarks_are_looked_after_as_soon_as_their_kind_is_served(api: FakeApi) -> None:
    api.not_served = {"benchmarks", "httproutes"}
    async with running(api, Machine(api)) as operator:
        await eventually(lambda: operator.value("leader") == 1)
        api.not_served = {"httproutes"}
        api.put(BENCHMARKS, benchmark())
        await eventually(is_in(api, "Succeeded"), seconds=20)


def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "PAUSE_SECONDS", {})
