"""The pure decisions of the local controllers."""

from decimal import Decimal

import pytest

from capstan_local.controllers.endpoints import build_subsets
from capstan_local.controllers.job_status import format_indexes, judge, parse_indexes
from capstan_local.controllers.rollout import limits, plan_scaling
from capstan_local.controllers.scheduler import choose_node, claim_problem
from capstan_local.controllers.shared import matches

# ---- rollouts


def replica_set(name: str, replicas: int, available: int) -> dict:
    return {"metadata": {"name": name}, "spec": {"replicas": replicas}, "status": {"availableReplicas": available}}


def plan(current: tuple[int, int] | None, old: list[tuple[int, int]], **spec: object) -> dict[str, int]:
    """name -> size, of the ReplicaSets to be scaled; sets are given as (replicas, available)."""
    deployment = {"metadata": {"name": "d"}, "spec": {"replicas": 4, **spec}}
    sets = [replica_set(f"old{index}", *sizes) for index, sizes in enumerate(old)]
    newest = None if current is None else replica_set("new", *current)
    return {item.replica_set["metadata"]["name"]: item.replicas for item in plan_scaling(deployment, newest, sets)}


ONE_BY_ONE = {"strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}}


@pytest.mark.parametrize(
    ("current", "old", "spec", "expected"),
    [
        ((0, 0), [], {}, {"new": 4}),
        ((4, 4), [], {}, {}),
        ((4, 4), [], {"replicas": 2}, {"new": 2}),
        ((0, 0), [(4, 4)], ONE_BY_ONE, {"new": 1}),
        ((1, 0), [(4, 4)], ONE_BY_ONE, {}),
        ((1, 1), [(4, 4)], ONE_BY_ONE, {"old0": 3}),
        ((1, 1), [(3, 3)], ONE_BY_ONE, {"new": 2}),
        ((4, 4), [(1, 1)], ONE_BY_ONE, {"old0": 0}),
        ((0, 0), [(4, 0)], ONE_BY_ONE, {"new": 1}),
        ((0, 0), [(4, 4)], {}, {"new": 1, "old0": 3}),
        ((4, 4), [(0, 0), (1, 1)], {}, {"old1": 0}),
        (None, [(4, 4)], {"strategy": {"type": "Recreate"}}, {"old0": 0}),
        ((0, 0), [(0, 0)], {"strategy": {"type": "Recreate"}}, {"new": 4}),
        ((2, 2), [], {"paused": True}, {"new": 4}),
        ((2, 2), [(2, 2)], {"paused": True}, {}),
    ],
)
def test_replica_sets_are_scaled_within_the_strategys_limits(
    current: tuple[int, int] | None, old: list[tuple[int, int]], spec: dict, expected: dict[str, int]
) -> None:
    assert plan(current, old, **spec) == expected


def test_percentages_round_so_that_something_can_always_move() -> None:
    assert limits({}, 3) == (1, 0)
    assert limits({"strategy": {"rollingUpdate": {"maxSurge": "0%", "maxUnavailable": "10%"}}}, 3) == (0, 1)


# ---- scheduling


def node(name: str, *, ready: bool = True, **spec: object) -> dict:
    return {
        "metadata": {"name": name, "labels": {"zone": name[-1]}},
        "spec": spec,
        "status": {
            "conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}],
            "allocatable": {"cpu": "2", "pods": "10"},
        },
    }


def place(nodes: list[dict], free: dict[str, str], cpu: str = "1", **spec: object) -> tuple[str | None, str]:
    amounts = {name: {"cpu": Decimal(amount), "pods": Decimal(1)} for name, amount in free.items()}
    return choose_node({"spec": spec}, {"cpu": Decimal(cpu), "pods": Decimal(1)}, nodes, amounts)


GPU_TAINT = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("nodes", "spec", "chosen", "why"),
    [
        ([node("a"), node("b")], {}, "b", ""),
        ([node("a", ready=False)], {}, None, "0/1 nodes are available: 1 node(s) were not ready."),
        ([node("a", unschedulable=True)], {}, None, "0/1 nodes are available: 1 node(s) were unschedulable."),
        ([node("a"), node("b")], {"nodeSelector": {"zone": "a"}}, "a", ""),
        ([node("b", taints=[GPU_TAINT]), node("a")], {}, "a", ""),
        ([node("b", taints=[GPU_TAINT])], {"tolerations": [{"key": "gpu", "operator": "Exists"}]}, "b", ""),
        ([node("b", taints=[GPU_TAINT])], {"tolerations": [{"key": "gpu", "value": "yes"}]}, "b", ""),
        (
            [node("b", taints=[GPU_TAINT])],
            {"tolerations": [{"key": "gpu", "value": "no"}]},
            None,
            "0/1 nodes are available: 1 node(s) had taint {gpu: yes}, that the pod didn't tolerate.",
        ),
        ([], {}, None, "0/0 nodes are available."),
    ],
)
def test_the_node_with_most_room_that_may_be_used_is_chosen(
    nodes: list[dict], spec: dict, chosen: str | None, why: str
) -> None:
    assert place(nodes, {"a": "1", "b": "2"}, **spec) == (chosen, why)


def test_pods_that_ask_for_nothing_are_spread() -> None:
    free = {"a": {"cpu": Decimal(2), "pods": Decimal(9)}, "b": {"cpu": Decimal(2), "pods": Decimal(8)}}
    wanted = {"pods": Decimal(1)}
    assert choose_node({"spec": {}}, wanted, [node("a"), node("b")], free) == ("a", "")


def claim(*, volume: str = "", phase: str = "Pending", **metadata: object) -> dict:
    return {"metadata": metadata, "spec": {"volumeName": volume}, "status": {"phase": phase}}


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (claim(volume="pv", phase="Bound"), ""),
        (None, 'persistentvolumeclaim "data" not found'),
        (claim(), "pod has unbound immediate PersistentVolumeClaims"),
        (claim(volume="pv", deletionTimestamp="now"), 'persistentvolumeclaim "data" is being deleted'),
        (
            claim(volume="pv", phase="Lost"),
            'persistentvolumeclaim "data" bound to non-existent persistentvolume "pv"',
        ),
    ],
)
def test_a_pod_waits_for_its_claims(found: dict | None, problem: str) -> None:
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}, {"name": "e", "emptyDir": {}}]
    pod = {"metadata": {"namespace": "ns"}, "spec": {"volumes": volumes}}
    claims = {} if found is None else {("ns", "data"): found}
    assert claim_problem(pod, claims) == problem


def test_reasons_are_counted_over_nodes() -> None:
    nodes = [node("a"), node("b"), node("c", ready=False)]
    assert place(nodes, {"a": "0.5", "b": "0.5", "c": "2"}) == (
        None,
        "0/3 nodes are available: 2 Insufficient cpu, 1 node(s) were not ready.",
    )


def test_required_affinity_is_obeyed() -> None:
    terms = [{"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["b"]}]}]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    assert place([node("a"), node("b")], {"a": "1", "b": "2"}, affinity=affinity) == ("a", "")


def test_selectors_combine_labels_and_expressions() -> None:
    selector = {"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]}
    assert [matches(selector, labels) for labels in ({"a": "1", "b": ""}, {"a": "1"}, {"b": "2"})] == [
        True,
        False,
        False,
    ]


# ---- jobs


def job(before: dict | None = None, **spec: object) -> dict:
    return {
        "metadata": {"name": "j"},
        "spec": {"parallelism": 2, "completions": 3, "template": {"spec": {"restartPolicy": "Never"}}, **spec},
        "status": before or {},
    }


def pods(*phases: str) -> list[dict]:
    return [{"metadata": {"name": str(number)}, "status": {"phase": phase}} for number, phase in enumerate(phases)]


@pytest.mark.parametrize(
    ("phases", "spec", "wanted", "outcome"),
    [
        ([], {}, 2, None),
        (["Succeeded", "Running"], {}, 2, None),
        (["Succeeded", "Succeeded"], {}, 1, None),
        (["Succeeded"] * 3, {}, 0, "Complete"),
        (["Failed"], {"backoffLimit": 0}, None, "Failed"),
        (["Failed"], {"backoffLimit": 1}, 2, None),
        ([], {"completions": None}, 2, None),
        (["Succeeded", "Running"], {"completions": None}, 1, None),
        (["Succeeded", "Succeeded"], {"completions": None}, None, "Complete"),
        (["Running"], {"suspend": True}, 0, None),
    ],
)
def test_a_job_wants_pods_until_it_is_judged(
    phases: list[str], spec: dict, wanted: int | None, outcome: str | None
) -> None:
    verdict = judge(job(**spec), pods(*phases), now=0.0)
    final = [item["type"] for item in verdict.status["conditions"] or [] if item["type"] != "Suspended"]
    assert (verdict.is_final, final) == (outcome is not None, [outcome] if outcome else [])
    if wanted is not None:
        assert verdict.wanted == wanted


def test_a_finished_job_does_not_change_its_mind() -> None:
    done = judge(job(), pods("Succeeded", "Succeeded", "Succeeded"), now=10.0)
    again = judge(job(done.status), [], now=99.0)
    assert (again.is_final, again.status) == (True, done.status)


def test_the_deadline_of_a_job_fails_it() -> None:
    started = {"startTime": "1970-01-01T00:00:00Z"}
    assert judge(job(started, activeDeadlineSeconds=60), pods("Running"), now=50.0).look_again == 10.0
    verdict = judge(job(started, activeDeadlineSeconds=60), pods("Running"), now=60.0)
    assert verdict.status["conditions"][-1]["reason"] == "DeadlineExceeded"


@pytest.mark.parametrize(("indexes", "text"), [(set(), ""), ({1}, "1"), ({1, 2}, "1,2"), ({0, 3, 4, 5, 7}, "0,3-5,7")])
def test_indexes_are_written_as_kubernetes_does(indexes: set[int], text: str) -> None:
    assert (format_indexes(indexes), parse_indexes(text)) == (text, indexes)


# ---- endpoints


def web_pod(name: str, ip: str, *, ready: bool = True, phase: str = "Running", port: int = 8080) -> dict:
    return {
        "metadata": {"name": name, "namespace": "n", "uid": name},
        "spec": {"nodeName": "here", "containers": [{"ports": [{"name": "web", "containerPort": port}]}]},
        "status": {
            "phase": phase,
            "podIP": ip,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": "t"}],
        },
    }


def address(name: str, ip: str) -> dict:
    return {
        "ip": ip,
        "nodeName": "here",
        "targetRef": {"kind": "Pod", "namespace": "n", "name": name, "uid": name},
    }


def test_subsets_group_addresses_by_their_ports() -> None:
    service = {"spec": {"ports": [{"name": "http", "port": 80, "targetPort": "web"}]}}
    every = [
        web_pod("b", "127.64.0.2"),
        web_pod("a", "127.64.0.1"),
        web_pod("c", "127.64.0.3", ready=False),
        web_pod("d", "127.64.0.4", port=9090),
        web_pod("e", "127.64.0.5", phase="Succeeded"),
        web_pod("f", ""),
    ]
    assert build_subsets(service, every) == [
        {
            "addresses": [address("a", "127.64.0.1"), address("b", "127.64.0.2")],
            "notReadyAddresses": [address("c", "127.64.0.3")],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        },
        {
            "addresses": [address("d", "127.64.0.4")],
            "ports": [{"name": "http", "port": 9090, "protocol": "TCP"}],
        },
    ]
    published = {"spec": {**service["spec"], "publishNotReadyAddresses": True}}
    assert [item["ip"] for item in build_subsets(published, every)[0]["addresses"]] == [
        "127.64.0.1",
        "127.64.0.2",
        "127.64.0.3",
    ]
