"""Variables, volumes, claims, probes, logs and exec on a local node. Against both API servers."""

import asyncio
import json

import pytest

from capstan_local.client import CLAIMS, CONFIG_MAPS, EVENTS, PODS, SECRETS, VOLUMES, ApiError, Object, key_of
from capstan_local.node.memory import MemoryVolumes
from tests.support.local_node import RunningNode, eventually, shell, state_of


def config_map(namespace: str, name: str, **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data}


def secret(namespace: str, name: str, **data: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": data,
    }


async def test_variables_come_from_everywhere_kubernetes_knows(node: RunningNode, namespace: str) -> None:
    await node.client.create(CONFIG_MAPS, config_map(namespace, "settings", greeting="hello", other="o"))
    await node.client.create(SECRETS, secret(namespace, "key", token="hush"))
    env = [
        {"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "greeting"}}},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "key", "key": "token"}}},
        {"name": "ABSENT", "valueFrom": {"secretKeyRef": {"name": "none", "key": "x", "optional": True}}},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1m"}}},
        {"name": "BOTH", "value": "$(GREETING)-$(TOKEN)-$(UNKNOWN)-$$(POD)"},
    ]
    show = "import os, json; print(json.dumps(dict(os.environ)))"
    container = {
        "name": "main",
        "command": ["python3", "-c", show],
        "env": env,
        "envFrom": [{"prefix": "C_", "configMapRef": {"name": "settings"}}, {"secretRef": {"name": "key"}}],
        "resources": {"requests": {"cpu": "250m"}},
    }
    pod = await node.create(namespace, "variables", container)
    seen = await node.wait_phase(pod, "Succeeded", "Failed")
    printed = json.loads(await node.log(pod))
    wanted = {entry["name"] for entry in env} | {"C_greeting", "C_other", "token"}
    assert {name: printed[name] for name in wanted if name in printed} == {
        "GREETING": "hello",
        "TOKEN": "hush",
        "POD": "variables",
        "NODE": node.node.name,
        "POD_IP": seen["status"]["podIP"],
        "CPU": "250",
        "BOTH": "hello-hush-$(UNKNOWN)-$(POD)",
        "C_greeting": "hello",
        "C_other": "o",
        "token": "hush",
    }
    assert "PYTEST_CURRENT_TEST" not in printed  # nothing of the node's own environment


async def test_paths_under_mounts_are_rewritten_and_listed(node: RunningNode, namespace: str) -> None:
    await node.client.create(CONFIG_MAPS, config_map(namespace, "files", a="1", b="2"))
    await node.client.create(SECRETS, secret(namespace, "pass", word="hush"))
    projected = {
        "sources": [
            {"configMap": {"name": "files", "items": [{"key": "a", "path": "deep/a"}]}},
            {"secret": {"name": "pass"}},
            {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
        ]
    }
    mounts = {"files": "/etc/files", "pass": "/etc/pass", "all": "/etc/all", "job": "/job"}
    script = "cat /etc/files/a /etc/files/b /etc/pass/word /etc/all/deep/a /etc/all/word /etc/all/name; pwd; echo $OUT"
    container = shell(
        script + "; python3 -c \"import os, json; print(sorted(json.loads(os.environ['POD_MOUNTS'])))\"",
        workingDir="/job/here",
        env=[{"name": "OUT", "value": "--dir=/job/out s3://job/x /jobs"}, {"name": "N", "value": "7"}],
        volumeMounts=[
            *({"name": name, "mountPath": path} for name, path in mounts.items()),
            {"name": "job", "mountPath": "/part", "subPathExpr": "part-$(N)"},
        ],
    )
    volumes = [
        {"name": "files", "configMap": {"name": "files"}},
        {"name": "pass", "secret": {"secretName": "pass"}},
        {"name": "all", "projected": projected},
        {"name": "job", "emptyDir": {}},
    ]
    pod = await node.create(namespace, "mounts", container, volumes=volumes)
    await node.wait_phase(pod, "Succeeded")
    root = f"{node.home.resolve()}/pods/{pod['metadata']['uid']}/volumes"
    assert (await node.log(pod)).splitlines() == [
        "12hush1hushmounts" + f"{root}/job/here",
        f"--dir={root}/job/out s3://job/x /jobs",
        "['/dev/termination-log', '/etc/all', '/etc/files', '/etc/pass', '/job', '/part']",
    ]
    assert (node.home / "pods" / pod["metadata"]["uid"] / "volumes/job/part-7").is_dir()


async def test_a_claim_is_bound_to_a_folder_that_outlives_pods_but_not_the_claim(
    node: RunningNode, namespace: str
) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "store", "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    volumes = [{"name": "store", "persistentVolumeClaim": {"claimName": "store"}}]
    mount = {"volumeMounts": [{"name": "store", "mountPath": "/data"}]}
    writer = await node.create(namespace, "writer", shell("echo kept > /data/file", **mount), volumes=volumes)
    await node.client.create(CLAIMS, claim)  # the pod was there first, and waits
    await node.wait_phase(writer, "Succeeded")
    reader = await node.create(namespace, "reader", shell("cat /data/file", **mount), volumes=volumes)
    await node.wait_phase(reader, "Succeeded")
    assert await node.log(reader) == "kept\n"
    bound = await node.client.get(CLAIMS, "store", namespace)
    assert (bound["status"]["phase"], bound["status"]["capacity"]) == ("Bound", {"storage": "1Gi"})
    volume = await node.client.get(VOLUMES, bound["spec"]["volumeName"])
    assert volume["spec"]["claimRef"]["uid"] == bound["metadata"]["uid"]
    for pod in (writer, reader):
        await node.client.delete(PODS, key_of(pod))
        await node.wait_gone(pod)
    await node.client.delete(CLAIMS, (namespace, "store"))

    async def is_reclaimed() -> bool:
        try:
            await node.client.get(VOLUMES, bound["spec"]["volumeName"])
        except ApiError as error:
            return error.code == 404
        return False

    await eventually(is_reclaimed)
    assert not (node.home / "volumes" / namespace / "store").exists()


async def test_a_volume_of_medium_memory_is_in_memory_and_gone_with_its_pod(node: RunningNode, namespace: str) -> None:
    volumes = [
        {"name": "fast", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "huge", "emptyDir": {"medium": "Memory", "sizeLimit": "1Pi"}},
    ]
    container = shell(
        "df --output=target $FAST | tail -1; touch $HUGE/x; echo $HUGE; sleep 60",
        env=[{"name": "FAST", "value": "/fast"}, {"name": "HUGE", "value": "/huge"}],
        volumeMounts=[{"name": "fast", "mountPath": "/fast"}, {"name": "huge", "mountPath": "/huge"}],
    )
    pod = await node.create(namespace, "memory", container, volumes=volumes)

    async def said() -> list[str] | None:
        lines = (await node.log(pod)).splitlines()
        return lines if len(lines) == 2 else None

    await node.wait_phase(pod, "Running")
    uid = pod["metadata"]["uid"]
    on_disk = node.home.resolve() / "pods" / uid / "volumes/huge"
    assert await eventually(said) == ["/dev/shm", str(on_disk)]
    in_memory = MemoryVolumes(node.home.resolve()).root / uid / "fast"
    assert in_memory.is_dir()

    async def is_noted() -> bool:
        events, _ = await node.client.list(EVENTS, namespace)
        return any(event["reason"] == "MemoryVolumeOnDisk" and '"huge"' in event["message"] for event in events)

    await eventually(is_noted)
    await node.client.delete(PODS, key_of(pod))
    await node.wait_gone(pod)
    assert not in_memory.parent.exists()


async def test_readiness_follows_its_probe(node: RunningNode, namespace: str) -> None:
    probe = {"exec": {"command": ["cat", "/flags/ready"]}, "periodSeconds": 1, "failureThreshold": 1}
    pod = await node.create(
        namespace,
        "ready",
        shell(
            "sleep 1; touch /flags/ready; sleep 2; rm /flags/ready; sleep 60",
            readinessProbe=probe,
            volumeMounts=[{"name": "flags", "mountPath": "/flags"}],
        ),
        volumes=[{"name": "flags", "emptyDir": {}}],
    )

    def is_ready(wanted: str):
        def holds(seen: Object) -> bool:
            conditions = {item["type"]: item["status"] for item in seen["status"].get("conditions") or []}
            return seen["status"].get("phase") == "Running" and conditions["Ready"] == wanted

        return holds

    for wanted in ("False", "True", "False"):
        await node.wait(pod, is_ready(wanted))


async def test_http_and_tcp_probes_ask_the_pods_own_address(node: RunningNode, namespace: str) -> None:
    server = (
        "import http.server, os\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "  def do_GET(self): self.send_response(200 if self.path == '/fine' else 500); self.end_headers()\n"
        "  def log_message(self, *a): pass\n"
        "http.server.HTTPServer((os.environ['IP'], 8080), H).serve_forever()\n"
    )
    container = {
        "name": "main",
        "command": ["python3", "-c", server],
        "ports": [{"name": "web", "containerPort": 8080}],
        "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "startupProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 30},
        "readinessProbe": {"httpGet": {"path": "/fine", "port": "web"}, "periodSeconds": 1},
    }
    good = await node.create(namespace, "good", container)
    bad_probe = {"httpGet": {"path": "/broken", "port": "web"}, "periodSeconds": 1, "failureThreshold": 1}
    bad = await node.create(
        namespace, "bad", {**container, "livenessProbe": bad_probe}, terminationGracePeriodSeconds=1
    )
    await node.wait(good, lambda seen: (seen["status"].get("containerStatuses") or [{}])[0].get("ready"))
    assert state_of(await node.wait_phase(bad, "Failed"))["state"]["terminated"]["exitCode"] == 143


async def test_a_container_that_fails_its_liveness_probe_is_restarted(node: RunningNode, namespace: str) -> None:
    probe = {"exec": {"command": ["test", "!", "-e", "dead"]}, "periodSeconds": 1, "failureThreshold": 1}
    pod = await node.create(
        namespace,
        "alive",
        shell("test -e dead && { rm dead; sleep 60; }; touch dead; sleep 60", livenessProbe=probe),
        restartPolicy="Always",
        terminationGracePeriodSeconds=1,
    )
    seen = await node.wait(
        pod, lambda seen: (seen["status"].get("containerStatuses") or [{}])[0].get("restartCount") == 1
    )
    assert state_of(seen)["lastState"] == {"terminated": {"exitCode": 143, "reason": "Error"}}


async def test_logs_can_be_cut_stamped_and_followed(node: RunningNode, namespace: str) -> None:
    script = (
        "for i in 1 2 3; do echo line $i; done; until test -e /flags/on; do sleep 0.05; done; echo last; printf open"
    )
    pod = await node.create(
        namespace,
        "talks",
        shell(script, volumeMounts=[{"name": "flags", "mountPath": "/flags"}]),
        volumes=[{"name": "flags", "emptyDir": {}}],
    )
    await node.wait_phase(pod, "Running")
    await eventually(lambda: _has(node, pod, "line 3\n"))
    assert await node.log(pod, tailLines="2") == "line 2\nline 3\n"
    assert await node.log(pod, limitBytes="8") == "line 1\nl"
    stamped = await node.log(pod, tailLines="1", timestamps="true")
    assert stamped.endswith("Z line 3\n")
    assert stamped.startswith("20")
    following = asyncio.create_task(node.log(pod, follow="true", tailLines="1"))
    await asyncio.sleep(0.2)
    assert not following.done()
    (node.home / "pods" / pod["metadata"]["uid"] / "volumes/flags/on").touch()
    assert await asyncio.wait_for(following, 10) == "line 3\nlast\nopen"
    with pytest.raises(ApiError, match="previous terminated container"):
        await node.log(pod, previous="true")


async def _has(node: RunningNode, pod: Object, end: str) -> bool:
    return (await node.log(pod)).endswith(end)


async def exec_in(
    node: RunningNode, pod: Object, *command: str, stdin: bytes | None = None
) -> tuple[bytes, bytes, Object]:
    """(stdout, stderr, status) of a command, as kubectl runs it."""
    path = PODS.path(pod["metadata"]["namespace"], pod["metadata"]["name"], "exec")
    params = [("command", part) for part in command] + [("stdout", "true"), ("stderr", "true")]
    params += [("stdin", "true")] if stdin is not None else []
    outputs: dict[int, bytes] = {1: b"", 2: b"", 3: b""}
    async with node.client.session.ws_connect(path, params=params, protocols=["v5.channel.k8s.io"]) as socket:
        if stdin is not None:
            for start in range(0, len(stdin), 10_000):
                await socket.send_bytes(b"\0" + stdin[start : start + 10_000])
            await socket.send_bytes(b"\xff\0")
        async for message in socket:
            outputs[message.data[0]] += message.data[1:]
    return outputs[1], outputs[2], json.loads(outputs[3])


async def test_commands_run_inside_containers(node: RunningNode, namespace: str) -> None:
    pod = await node.create(namespace, "shell", shell("sleep 60", env=[{"name": "WORD", "value": "inside"}]))
    await node.wait_phase(pod, "Running")
    assert await exec_in(node, pod, "sh", "-c", "echo $WORD; echo bad >&2; exit 3") == (
        b"inside\n",
        b"bad\n",
        {
            "metadata": {},
            "status": "Failure",
            "reason": "NonZeroExitCode",
            "message": "command terminated with non-zero exit code: 3",
            "details": {"causes": [{"reason": "ExitCode", "message": "3"}]},
        },
    )
    blob = bytes(range(256)) * 2000
    assert await exec_in(node, pod, "cat", stdin=blob) == (blob, b"", {"metadata": {}, "status": "Success"})
    _, _, status = await exec_in(node, pod, "no-such-program")
    assert (status["status"], status["message"]) == (
        "Failure",
        'exec "no-such-program": executable file not found in $PATH',
    )


async def test_lifecycle_hooks_run_inside_the_container(node: RunningNode, namespace: str) -> None:
    lifecycle = {
        "postStart": {"exec": {"command": ["sh", "-c", "echo started >> /shared/steps"]}},
        "preStop": {"exec": {"command": ["sh", "-c", "echo stopping >> /shared/steps"]}},
    }
    shared = node.home / "shared"
    shared.mkdir()
    pod = await node.create(
        namespace,
        "hooks",
        shell(
            "trap 'echo stopped >> /shared/steps; exit 0' TERM; while :; do sleep 0.05; done",
            lifecycle=lifecycle,
            volumeMounts=[{"name": "shared", "mountPath": "/shared"}],
        ),
        volumes=[{"name": "shared", "hostPath": {"path": str(shared)}}],
    )

    async def has_started() -> bool:
        return (shared / "steps").exists()

    await eventually(has_started)
    await node.client.delete(PODS, key_of(pod))
    await node.wait_gone(pod)
    assert (shared / "steps").read_text() == "started\nstopping\nstopped\n"
