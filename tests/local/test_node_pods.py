"""Pods on a local node: how they start, end, and what is said of them. Against both API servers."""

import asyncio
import itertools
from typing import Any

from capstan_local.client import CONFIG_MAPS, EVENTS, PODS, SECRETS, SERVICES, key_of
from capstan_local.node.launcher import all_pids, mark_of
from tests.support.local_node import RunningNode, eventually, shell, state_of


async def test_a_program_that_succeeds_is_told_and_no_write_repeats_another(node: RunningNode, namespace: str) -> None:
    versions = []

    async def follow(version: str) -> None:
        async for _, obj in node.client.watch(PODS, version, namespace):
            versions.append(obj["status"])
            if versions[-1].get("phase") == "Succeeded":
                return

    _, version = await node.client.list(PODS, namespace)
    following = asyncio.create_task(follow(version))
    pod = await node.create(namespace, "ok", shell("echo done; echo goodbye > /dev/termination-log; sleep 0.3"))
    await asyncio.wait_for(following, 20)
    await asyncio.sleep(0.5)  # a write too many would come now
    seen = await node.client.get(PODS, "ok", namespace)
    assert all(before != after for before, after in itertools.pairwise(versions))
    assert [status["phase"] for status in versions[-2:]] == ["Running", "Succeeded"]
    assert len(versions) <= 4  # bound, perhaps ContainerCreating, running, ended
    assert state_of(seen) == {
        "name": "main",
        "image": "local/host",
        "imageID": "local://local/host",
        "state": {"terminated": {"exitCode": 0, "reason": "Completed", "message": "goodbye\n"}},
        "lastState": {},
        "restartCount": 0,
        "ready": False,
        "started": False,
    }
    conditions = {item["type"]: (item["status"], item.get("reason")) for item in seen["status"]["conditions"]}
    assert conditions == {
        "Initialized": ("True", None),
        "Ready": ("False", "PodCompleted"),
        "ContainersReady": ("False", "PodCompleted"),
        "PodScheduled": ("True", None),
        "PodReadyToStartContainers": ("False", None),
    }
    assert seen["status"]["podIP"].startswith("127.")
    assert await node.log(pod) == "done\n"


async def test_exit_codes_and_signals_are_reported(node: RunningNode, namespace: str) -> None:
    failed = await node.create(namespace, "failed", shell("exit 42"))
    killed = await node.create(namespace, "killed", shell("kill -SEGV $BASHPID"))
    missing = await node.create(namespace, "missing", {"name": "main", "command": ["no-such-program"]})
    assert state_of(await node.wait_phase(failed, "Failed"))["state"] == {
        "terminated": {"exitCode": 42, "reason": "Error"}
    }
    assert state_of(await node.wait_phase(killed, "Failed"))["state"] == {
        "terminated": {"exitCode": 139, "reason": "Error"}
    }
    assert state_of(await node.wait_phase(missing, "Failed"))["state"] == {
        "terminated": {
            "exitCode": 128,
            "reason": "StartError",
            "message": 'exec "no-such-program": executable file not found in $PATH',
        }
    }


async def test_the_end_of_the_log_stands_in_for_a_missing_message(node: RunningNode, namespace: str) -> None:
    container = shell("echo one; echo two >&2; exit 3", terminationMessagePolicy="FallbackToLogsOnError")
    pod = await node.create(namespace, "words", container)
    assert state_of(await node.wait_phase(pod, "Failed"))["state"]["terminated"]["message"] == "one\ntwo\n"


async def test_on_failure_restarts_until_success(node: RunningNode, namespace: str) -> None:
    script = "echo run; test -e second && exit 0; test -e first && touch second; touch first; exit 5"
    pod = await node.create(namespace, "retry", shell(script), restartPolicy="OnFailure")
    state = state_of(await node.wait_phase(pod, "Succeeded"))
    assert (state["restartCount"], state["lastState"]) == (2, {"terminated": {"exitCode": 5, "reason": "Error"}})
    assert await node.log(pod, previous="true") == "run\n"


async def test_a_crashing_container_waits_longer_each_time(node: RunningNode, namespace: str) -> None:
    pod = await node.create(namespace, "crash", shell("exit 1"), restartPolicy="Always")

    def waits_for(seconds: str):
        def holds(seen: dict) -> bool:
            waiting = (seen["status"].get("containerStatuses") or [{}])[0].get("state", {}).get("waiting", {})
            return waiting.get("reason") == "CrashLoopBackOff" and f"back-off {seconds}" in waiting["message"]

        return holds

    for seconds in ("0.2s", "0.4s", "0.8s"):
        seen = await node.wait(pod, waits_for(seconds))
        assert seen["status"]["phase"] == "Running"
    assert state_of(seen)["lastState"] == {"terminated": {"exitCode": 1, "reason": "Error"}}


async def test_init_containers_run_in_order_and_share_volumes(node: RunningNode, namespace: str) -> None:
    mount = [{"name": "shared", "mountPath": "/shared"}]
    steps = [
        {
            "name": name,
            "image": "local/host",
            "command": ["sh", "-c", f"echo {name} >> /shared/steps"],
            "volumeMounts": mount,
        }
        for name in ("first", "second")
    ]
    pod = await node.create(
        namespace,
        "steps",
        shell("cat /shared/steps", volumeMounts=mount),
        initContainers=steps,
        volumes=[{"name": "shared", "emptyDir": {}}],
    )
    seen = await node.wait_phase(pod, "Succeeded")
    assert await node.log(pod, container="main") == "first\nsecond\n"
    assert [item["ready"] for item in seen["status"]["initContainerStatuses"]] == [True, True]


async def test_a_failing_init_container_fails_the_pod_and_nothing_else_runs(node: RunningNode, namespace: str) -> None:
    init = {"name": "check", "image": "local/host", "command": ["sh", "-c", "exit 4"]}
    pod = await node.create(namespace, "blocked", shell("echo never"), initContainers=[init])
    seen = await node.wait_phase(pod, "Failed")
    assert state_of(seen)["state"] == {"waiting": {"reason": "ContainerCreating"}}
    assert seen["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 4


async def test_an_unknown_image_is_explained(node: RunningNode, namespace: str) -> None:
    pod = await node.create(namespace, "image", shell("true", image="registry:5000/team/app:v1"))
    seen = await node.wait(
        pod,
        lambda seen: (
            seen["status"].get("containerStatuses")
            and seen["status"]["containerStatuses"][0]["state"].get("waiting", {}).get("reason") == "ImagePullBackOff"
        ),
    )
    message = state_of(seen)["state"]["waiting"]["message"]
    assert seen["status"]["phase"] == "Pending"
    assert 'image "registry:5000/team/app:v1"' in message
    assert "add a rule for it" in message


async def test_an_image_brings_its_environment_and_command(node: RunningNode, namespace: str) -> None:
    container = {
        "name": "main",
        "image": "tools:1.2",
        "args": ["echo $FROM_IMAGE $OWN"],
        "env": [{"name": "OWN", "value": "x"}],
    }
    pod = await node.create(namespace, "tools", container)
    await node.wait_phase(pod, "Succeeded")
    assert await node.log(pod) == "yes x\n"


async def test_a_container_is_told_of_services_even_where_links_to_them_are_off(
    node: RunningNode, namespace: str
) -> None:
    """Their names mean nothing here, so nothing else could tell it."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": "digits-proven"},
        "spec": {"selector": {"app": "digits"}, "ports": [{"port": 8480}]},
    }
    address = (await node.client.create(SERVICES, service))["spec"]["clusterIP"]
    numbers = itertools.count()

    async def is_told() -> bool:
        echo = shell("echo $DIGITS_PROVEN_SERVICE_HOST")
        pod = await node.create(namespace, f"asks-{next(numbers)}", echo, enableServiceLinks=False)
        await node.wait_phase(pod, "Succeeded")
        return await node.log(pod) == f"{address}\n"

    await eventually(is_told)


async def test_a_missing_secret_holds_a_container_up_until_it_is_there(node: RunningNode, namespace: str) -> None:
    reference = {"secretKeyRef": {"name": "later", "key": "word"}}
    pod = await node.create(namespace, "waits", shell("echo $WORD", env=[{"name": "WORD", "valueFrom": reference}]))
    seen = await node.wait(
        pod,
        lambda seen: (
            (seen["status"].get("containerStatuses") or [{}])[0].get("state", {}).get("waiting", {}).get("message")
        ),
    )
    assert state_of(seen)["state"] == {
        "waiting": {"reason": "CreateContainerConfigError", "message": 'secret "later" not found'}
    }
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "later", "namespace": namespace},
        "stringData": {"word": "hush"},
    }
    await node.client.create(SECRETS, secret)
    await node.wait(pod, lambda seen: seen["status"]["phase"] == "Succeeded", seconds=8)  # woken, not at the next try
    assert await node.log(pod) == "hush\n"


async def test_a_missing_volume_holds_a_pod_up_and_its_events_say_which(node: RunningNode, namespace: str) -> None:
    def prepared(seen: Any) -> str | None:
        found = (one for one in seen["status"].get("conditions") or [] if one["type"] == "PodReadyToStartContainers")
        return next((one["status"] for one in found), None)

    volumes = [{"name": "code", "configMap": {"name": "lookup"}}]
    pod = await node.create(namespace, "mounts", shell("sleep 60"), volumes=volumes)
    seen = await node.wait(pod, lambda seen: prepared(seen) == "False")
    assert state_of(seen)["state"] == {"waiting": {"reason": "ContainerCreating"}}  # a kubelet says no more here either
    events, _ = await node.client.list(EVENTS, namespace)
    told = [one["message"] for one in events if one["reason"] == "FailedMount"]
    assert told == ['MountVolume.SetUp failed: configmap "lookup" not found']
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "lookup", "namespace": namespace}}
    await node.client.create(CONFIG_MAPS, config)
    seen = await node.wait_phase(pod, "Running")
    assert prepared(seen) == "True"


async def test_the_deadline_of_a_pod_ends_it(node: RunningNode, namespace: str) -> None:
    pod = await node.create(namespace, "late", shell("sleep 60"), activeDeadlineSeconds=1)
    seen = await node.wait_phase(pod, "Failed")
    assert (seen["status"]["reason"], state_of(seen)["state"]["terminated"]["exitCode"]) == ("DeadlineExceeded", 143)


async def test_deletion_gives_the_program_its_grace_and_tells_how_it_ended(node: RunningNode, namespace: str) -> None:
    script = "trap 'echo saved > /dev/termination-log; exit 9' TERM; echo up; while :; do sleep 0.05; done"
    pod = await node.create(namespace, "polite", shell(script))
    await node.wait_phase(pod, "Running")
    while await node.log(pod) != "up\n":
        await asyncio.sleep(0.05)
    last = {}

    async def follow(version: str) -> None:
        async for change, obj in node.client.watch(PODS, version, namespace):
            last.update(obj)
            if change == "DELETED":
                return

    _, version = await node.client.list(PODS, namespace)
    following = asyncio.create_task(follow(version))
    await node.client.delete(PODS, key_of(pod))
    await asyncio.wait_for(following, 20)
    assert state_of(last)["state"] == {"terminated": {"exitCode": 9, "reason": "Error", "message": "saved\n"}}
    assert last["status"]["phase"] == "Failed"
    assert not (node.home / "pods" / pod["metadata"]["uid"]).exists()


async def test_a_program_that_ignores_the_signal_is_killed_with_all_it_started(
    node: RunningNode, namespace: str
) -> None:
    script = "trap '' TERM; setsid sleep 3111 & sleep 3112 & echo up; wait; sleep 3113"
    pod = await node.create(namespace, "stubborn", shell(script), terminationGracePeriodSeconds=1)
    await node.wait_phase(pod, "Running")
    while await node.log(pod) != "up\n":
        await asyncio.sleep(0.05)
    assert len(processes_of(pod)) >= 3
    await node.client.delete(PODS, key_of(pod))
    await node.wait_gone(pod)
    await asyncio.sleep(0.2)
    assert processes_of(pod) == []


async def test_a_pod_removed_by_force_is_stopped_too(node: RunningNode, namespace: str) -> None:
    pod = await node.create(namespace, "forced", shell("trap '' TERM; sleep 3211 & sleep 3212; sleep 3213"))
    await node.wait_phase(pod, "Running")
    await node.client.delete(PODS, key_of(pod), grace_seconds=0)
    await node.wait_gone(pod)
    for _ in range(100):
        if not processes_of(pod):
            break
        await asyncio.sleep(0.05)
    assert processes_of(pod) == []


async def test_a_config_map_that_changes_is_seen_by_the_running_container(node: RunningNode, namespace: str) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "c", "namespace": namespace},
        "data": {"a": "1"},
    }
    await node.client.create(CONFIG_MAPS, config)
    script = "until grep -q 2 /etc/c/a; do sleep 0.05; done; cat /etc/c/a"
    pod = await node.create(
        namespace,
        "reader",
        shell(script, volumeMounts=[{"name": "c", "mountPath": "/etc/c"}]),
        volumes=[{"name": "c", "configMap": {"name": "c"}}],
    )
    await node.wait_phase(pod, "Running")
    await node.client.patch(CONFIG_MAPS, (namespace, "c"), {"data": {"a": "2"}})
    await node.wait_phase(pod, "Succeeded")


async def test_accelerators_are_dealt_out_once(node: RunningNode, namespace: str) -> None:
    wants = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
    show = "echo $CUDA_VISIBLE_DEVICES; sleep 20"
    pair = await node.create(namespace, "pair", shell(show, **wants), {**shell(show, **wants), "name": "other"})
    none = await node.create(namespace, "none", shell("echo [$CUDA_VISIBLE_DEVICES]"))
    await node.wait_phase(pair, "Running")
    too_many = await node.create(namespace, "many", shell(show, resources={"limits": {"nvidia.com/gpu": "3"}}))
    refused = await node.wait_phase(too_many, "Failed")
    await node.wait_phase(none, "Succeeded")
    logs = {await node.log(pair, container="main"), await node.log(pair, container="other")}
    assert logs == {"0\n", "1\n"}
    assert refused["status"]["reason"] == "OutOfnvidia.com/gpu"
    assert await node.log(none) == "[]\n"


async def test_events_tell_the_life_of_a_container(node: RunningNode, namespace: str) -> None:
    pod = await node.create(namespace, "told", shell("exit 1"), restartPolicy="OnFailure")
    wanted = {"Pulled", "Created", "Started", "BackOff"}
    for _ in range(200):
        events, _ = await node.client.list(EVENTS, namespace)
        if {item["reason"] for item in events} >= wanted:
            break
        await asyncio.sleep(0.05)
    assert {item["reason"] for item in events} >= wanted
    assert {item["involvedObject"]["uid"] for item in events} == {pod["metadata"]["uid"]}


def processes_of(pod: dict) -> list[int]:
    """Pids of what was started in the pod's containers."""
    return [pid for pid in all_pids() if f"/{pod['metadata']['uid']}/" in (mark_of(pid) or "")]
