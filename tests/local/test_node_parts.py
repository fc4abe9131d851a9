"""The pure parts of the local node, and the parts that need nothing but this machine."""

import asyncio
import itertools
import socket
from decimal import Decimal
from pathlib import Path

import pytest

import capstan_local.node as node_package
from capstan_local.node.checks import Prober, Target
from capstan_local.node.environment import ConfigError, PodFacts, build_environment, expand, field_value
from capstan_local.node.images import ImageRule, UnknownImage, find_rule, host_rule, without_tag
from capstan_local.node.interrupt import pause, unless
from capstan_local.node.kubelet import parse_log_query
from capstan_local.node.logs import LogQuery, LogWriter, older, read_log, stamp
from capstan_local.node.machine import Devices, OomCounter
from capstan_local.node.mounts import Mounts
from capstan_local.node.node import default_name
from capstan_local.node.proxy import Relay, endpoint_addresses
from capstan_local.node.status import ContainerState, Verdict, build_status, decide_phase, status_patch
from capstan_local.node.volumes import File, write_atomically
from capstan_local.quantity import divide_rounding_up, parse_quantity, pod_requests

POD = {
    "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": 'say "hi"'}},
    "spec": {"nodeName": "here", "containers": []},
}
FACTS = PodFacts(POD, "127.64.0.1", "127.0.0.1", {"cpu": "2", "memory": "1Gi"})


# ---- quantities


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1500m", "1.5"),
        ("2Ki", "2048"),
        ("1.5Gi", "1610612736"),
        ("1e3", "1000"),
        ("5M", "5000000"),
        (3, "3"),
        ("-1", "-1"),
    ],
)
def test_a_quantity_is_an_exact_number(text: str | int, value: str) -> None:
    assert parse_quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "1KB", "m", "1 Gi", "--1"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        parse_quantity(text)


def test_an_init_container_counts_only_if_it_asks_for_more() -> None:
    spec = {
        "containers": [
            {"resources": {"requests": {"cpu": "1"}, "limits": {"nvidia.com/gpu": "2"}}},
            {"resources": {"requests": {"cpu": "500m"}}},
        ],
        "initContainers": [{"resources": {"requests": {"cpu": "1200m", "memory": "1Gi"}}}],
    }
    assert pod_requests(spec) == {"cpu": Decimal("1.5"), "nvidia.com/gpu": 2, "memory": 1024**3}


def test_amounts_are_shown_in_whole_units_rounded_up() -> None:
    assert [divide_rounding_up("1500m", "1"), divide_rounding_up("1Gi", "1Mi"), divide_rounding_up("1", "1m")] == [
        2,
        1024,
        1000,
    ]


# ---- variables


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "1"),
        ("$(B)", "$(B)"),
        ("$$(A)", "$(A)"),
        ("$A ${A}", "$A ${A}"),
        ("$(A)$(A)", "11"),
        ("$", "$"),
        ("$(A", "$(A"),
    ],
)
def test_references_are_expanded_as_kubernetes_does(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1"}) == expanded


def test_variables_see_those_before_them_and_those_given() -> None:
    container = {
        "env": [
            {"name": "A", "value": "$(GIVEN)-$(B)"},
            {"name": "B", "value": "$(A)"},
            {"name": "LIMIT", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
        ]
    }
    assert build_environment(container, FACTS, {}, {"GIVEN": "g"}) == {"A": "g-$(B)", "B": "g-$(B)", "LIMIT": "1024"}


def test_names_that_are_no_variables_are_left_out_of_env_from() -> None:
    container = {"envFrom": [{"configMapRef": {"name": "c"}}, {"secretRef": {"name": "none", "optional": True}}]}
    configs = {("ConfigMap", "c"): {"ok": b"1", "1bad": b"2", "run.json": b"{}"}, ("Secret", "none"): None}
    assert build_environment(container, FACTS, configs, {}) == {"ok": "1", "run.json": "{}"}


def test_a_missing_key_is_named() -> None:
    container = {"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}]}
    with pytest.raises(ConfigError, match="couldn't find key k in ConfigMap n/c"):
        build_environment(container, FACTS, {("ConfigMap", "c"): {}}, {})


def test_labels_are_listed_sorted_and_escaped() -> None:
    assert field_value("metadata.labels", FACTS) == 'a="say \\"hi\\""\nb="2"'
    assert field_value("metadata.labels['b']", FACTS) == "2"
    with pytest.raises(ConfigError, match=r"unsupported fieldPath: spec\.containers"):
        field_value("spec.containers", FACTS)


# ---- mounts and images


@pytest.mark.parametrize(
    ("text", "rewritten"),
    [
        ("/data", "/real"),
        ("/data/x", "/real/x"),
        ("--dir=/data/x:/data/y", "--dir=/real/x:/real/y"),
        ("'/data'", "'/real'"),
        ("file:///data/x", "file:///real/x"),
        ("/data/deep/x", "/other/x"),
        ("/database", "/database"),
        ("/data-old", "/data-old"),
        ("/data.txt", "/data.txt"),
        ("look in /data.", "look in /real."),
        ("/mnt/data", "/mnt/data"),
        ("s3://data/x", "s3://data/x"),
        ("http://host/data", "http://host/data"),
        ("${ROOT}/data", "${ROOT}/data"),
        ("~/data", "~/data"),
    ],
)
def test_only_whole_paths_under_a_mount_are_rewritten(text: str, rewritten: str) -> None:
    mounts = Mounts({"/data": Path("/real"), "/data/deep/": Path("/other")})
    assert mounts.rewrite(text) == rewritten


def test_images_are_found_by_pattern_with_and_without_tag() -> None:
    rules = [ImageRule("team/*", ["/team"]), ImageRule("exact:1", ["/exact"])]
    images = ("team/app:v2", "exact:1", "local/host:any")
    assert [find_rule(image, rules).path for image in images] == [["/team"], ["/exact"], host_rule().path]
    with pytest.raises(UnknownImage, match=r'image "exact:2": .* use one of: team/\*, exact:1, local/host'):
        find_rule("exact:2", rules)


def test_an_unknown_image_is_told_what_there_is_each_once() -> None:
    with pytest.raises(UnknownImage, match=r"use one of: capstan/\*, local/host$"):
        find_rule("nginx", [ImageRule("capstan/*", ["/bin"]), host_rule({})])


def test_the_port_of_a_registry_is_no_tag() -> None:
    assert [without_tag(name) for name in ("r:5000/a/b:1", "r:5000/a", "a@sha256:ff", "a:1@sha256:ff")] == [
        "r:5000/a/b",
        "r:5000/a",
        "a",
        "a",
    ]


def test_a_file_of_rules_is_read_and_its_errors_name_the_rule(tmp_path: Path) -> None:
    file = tmp_path / "images.yaml"
    file.write_text("- {pattern: a, path: [/bin], env: {X: y}, command: [sh]}\n")
    assert ImageRule.read(file) == [ImageRule("a", ["/bin"], {"X": "y"}, ["sh"])]
    file.write_text("- {pattern: a, path: [], comand: [sh]}\n")
    with pytest.raises(ValueError, match="rule 0: unknown field 'comand'"):
        ImageRule.read(file)


def test_generated_files_change_all_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    write_atomically(folder, {"a": File(b"1", 0o640), "deep/b": File(b"2", 0o644)})
    opened = (folder / "..data").resolve()
    write_atomically(folder, {"a": File(b"1", 0o640), "deep/b": File(b"2", 0o644)})
    assert (folder / "..data").resolve() == opened  # nothing changed: nothing was touched
    write_atomically(folder, {"a": File(b"3", 0o600), "c": File(b"4", 0o644)})
    assert {path.name for path in folder.iterdir()} == {"a", "c", "..data", "..2"}
    assert ((folder / "a").read_bytes(), (folder / "a").stat().st_mode & 0o777) == (b"3", 0o600)
    with pytest.raises(ConfigError, match=r"must not contain '\.\.'"):
        write_atomically(folder, {"../out": File(b"", 0o644)})


# ---- logs


async def printed(path: Path, writer: LogWriter | None = None, **query: object) -> bytes:
    return b"".join([chunk async for chunk in read_log(path, LogQuery(**query), writer)])  # type: ignore[arg-type]


async def test_a_log_keeps_lines_and_parts_of_lines(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "0.log")
    for chunk in (b"one\ntw", b"o\n", b"\n", b"carriage\rreturn\n", b"open"):
        writer.write(chunk)
    writer.close()
    assert await printed(writer.path) == b"one\ntwo\n\ncarriage\rreturn\nopen"
    assert await printed(writer.path, tail_lines=1) == b"open"
    assert await printed(writer.path, tail_lines=0) == b""
    assert await printed(writer.path, tail_lines=99) == await printed(writer.path)
    assert await printed(writer.path, since=stamp(10**18 * 4)) == b""


async def test_a_full_log_drops_its_older_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capstan_local.node.logs.LOG_BYTES", 2000)
    writer = LogWriter(tmp_path / "0.log")
    for number in range(200):
        writer.write(b"%03d\n" % number)
    writer.close()
    assert writer.path.stat().st_size + older(writer.path).stat().st_size <= 4000
    kept = (await printed(writer.path)).split()
    assert kept == [b"%03d" % number for number in range(200 - len(kept), 200)]
    assert len(kept) > 50
    tail = await printed(writer.path, tail_lines=70)
    assert tail.split() == kept[-70:]


async def test_a_follower_sees_everything_across_rotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capstan_local.node.logs.LOG_BYTES", 500)
    writer = LogWriter(tmp_path / "0.log")
    following = asyncio.create_task(printed(writer.path, writer, follow=True))
    for number in range(100):
        writer.write(b"%d\n" % number)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    writer.close()
    assert (await asyncio.wait_for(following, 5)).split() == [b"%d" % number for number in range(100)]


def test_log_queries_are_checked() -> None:
    query = parse_log_query({"follow": "1", "tailLines": "5", "sinceSeconds": "60", "timestamps": "true"}, 10**18)
    assert query == LogQuery(5, "2001-09-09T01:45:40.000000000Z", None, True, True)
    with pytest.raises(ValueError, match="limitBytes: 'x' is not a whole number"):
        parse_log_query({"limitBytes": "x"}, 0)


# ---- status


def ended(code: int, **more: object) -> ContainerState:
    return ContainerState("c", "i", {"terminated": {"exitCode": code}}, **more)  # type: ignore[arg-type]


RUNNING = ContainerState("c", "i", {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, ready=True, started=True)
WAITING = ContainerState("c", "i")
CRASHED = ContainerState("c", "i", {"waiting": {"reason": "CrashLoopBackOff"}}, {"terminated": {"exitCode": 1}})


@pytest.mark.parametrize(
    ("policy", "init", "main", "stopped", "phase"),
    [
        ("Always", [], [WAITING], False, "Pending"),
        ("Always", [], [RUNNING], False, "Running"),
        ("Always", [], [RUNNING, WAITING], False, "Pending"),
        ("Always", [], [CRASHED], False, "Running"),
        ("Always", [], [ended(0)], False, "Running"),
        ("Always", [], [ended(0)], True, "Succeeded"),
        ("Always", [], [ended(143)], True, "Failed"),
        ("OnFailure", [], [ended(0), ended(1)], False, "Running"),
        ("OnFailure", [], [ended(0), ended(0)], False, "Succeeded"),
        ("Never", [], [ended(0), ended(1)], False, "Failed"),
        ("Never", [], [ended(0), RUNNING], False, "Running"),
        ("Never", [ended(1)], [WAITING], False, "Failed"),
        ("OnFailure", [ended(1)], [WAITING], False, "Pending"),
        ("Never", [ended(0)], [RUNNING], False, "Running"),
        ("Never", [ContainerState("s", "i", is_sidecar=True)], [WAITING], False, "Pending"),
        ("Never", [ended(137, is_sidecar=True)], [ended(0)], False, "Succeeded"),
    ],
)
def test_the_phase_follows_from_the_containers(
    policy: str, init: list[ContainerState], main: list[ContainerState], stopped: bool, phase: str
) -> None:
    assert decide_phase(policy, init, main, is_stopped=stopped) == phase


def status_of(states: list[ContainerState], current: dict, now: float = 0.0, verdict: Verdict | None = None) -> dict:
    pod = {**POD, "status": current}
    return build_status(
        pod, [], states, pod_ip="127.64.0.1", host_ip="127.0.0.1", start_time="t", now=now, verdict=verdict
    )


def test_an_unchanged_status_is_not_written_and_conditions_keep_their_time() -> None:
    first = status_of([RUNNING], {}, now=100.0)
    assert status_patch({}, first) == first
    again = status_of([RUNNING], first, now=900.0)
    assert status_patch(first, again) == {}
    unready = ContainerState("c", "i", RUNNING.state, started=True)
    patch = status_patch(first, status_of([unready], first, now=900.0))
    assert sorted(patch) == ["conditions", "containerStatuses"]
    assert [(item["type"], item["status"], item["lastTransitionTime"]) for item in patch["conditions"]] == [
        ("Ready", "False", "1970-01-01T00:15:00Z"),
        ("ContainersReady", "False", "1970-01-01T00:15:00Z"),
    ]


def test_a_condition_that_turns_true_loses_its_reason() -> None:
    waiting = status_of([WAITING], {})
    patch = status_patch(waiting, status_of([RUNNING], waiting))
    ready = next(item for item in patch["conditions"] if item["type"] == "Ready")
    assert (ready["status"], ready["reason"], ready["message"]) == ("True", None, None)


def test_a_verdict_waits_for_the_last_container() -> None:
    verdict = Verdict("DeadlineExceeded", "late")
    assert status_of([RUNNING], {}, verdict=verdict)["phase"] == "Running"
    assert status_of([ended(0)], {}, verdict=verdict)["phase"] == "Failed"


# ---- the machine


def test_devices_belong_to_one_pod_at_a_time() -> None:
    devices = Devices(["0", "1", "2"])
    assert devices.take("a", 2) == ["0", "1"]
    assert devices.take("a", 2) == ["0", "1"]
    assert devices.take("b", 2) is None
    devices.release("a")
    assert devices.take("b", 3) == ["0", "1", "2"]


def test_an_oom_kill_is_seen_once(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("pgfault 5\noom_kill 3\n")
    counter = OomCounter(vmstat)
    assert counter.look() is False
    vmstat.write_text("oom_kill 4\n")
    assert [counter.look(), counter.look()] == [True, False]


def test_a_node_is_called_after_its_host_if_that_is_a_name() -> None:
    assert [default_name("Laptop.Home"), default_name("my_host"), default_name("")] == ["laptop.home", "local", "local"]


async def test_probes_count_in_a_row_before_they_decide() -> None:
    outcomes = iter([None, "bad", None, "bad", "bad", "bad", "bad"])
    told: list[object] = []

    async def look(*_: object) -> str | None:
        return next(outcomes)

    probe = {"periodSeconds": 0, "failureThreshold": 3}
    prober = Prober(
        {"livenessProbe": probe},
        Target("127.0.0.1", {}, None, None),  # type: ignore[arg-type]
        lambda: told.append("started"),
        lambda ready: told.append(f"ready {ready}"),
        lambda kind, why: told.append(f"{kind} {why}"),
        lambda kind, grace: told.append(f"dead {kind} {grace}"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("capstan_local.node.checks.run_handler", look)
        await asyncio.wait_for(prober.run(), 5)
    failures = ["Liveness bad"]
    assert told == ["started", "ready True", *failures, *(failures * 3), "dead liveness None"]


# ---- services


def test_only_ready_addresses_of_the_port_are_backends() -> None:
    ports = [{"name": "http", "port": 80}, {"name": "other", "port": 81}]
    subsets = [
        {"addresses": [{"ip": "127.64.0.2"}, {"ip": "127.64.0.1"}], "notReadyAddresses": [{"ip": "9"}], "ports": ports}
    ]
    assert endpoint_addresses({"subsets": subsets}, "http") == [("127.64.0.1", 80), ("127.64.0.2", 80)]


async def test_a_relay_takes_turns_skips_the_dead_and_passes_the_end_on() -> None:
    async def backend(name: bytes) -> asyncio.Server:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(name + await reader.read())  # answers when the client has said all
            writer.close()

        return await asyncio.start_server(serve, "127.0.0.1", 0)

    servers = [await backend(b"a:"), await backend(b"b:"), await backend(b"dead:")]
    addresses = [server.sockets[0].getsockname()[:2] for server in servers]
    servers[2].close()
    await servers[2].wait_closed()
    relay = Relay(("127.0.0.1", 0))
    relay.listen()
    relay.point_to(addresses)

    async def ask() -> bytes:
        reader, writer = await asyncio.open_connection(*relay.address)
        writer.write(b"hello")
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        return answer

    answers = [await ask() for _ in range(6)]
    assert set(answers) == {b"a:hello", b"b:hello"}
    assert max(len(list(group)) for _, group in itertools.groupby(answers)) <= 2
    relay.close()
    for server in servers[:2]:
        server.close()
    with pytest.raises(OSError, match="Connect call failed"):
        await ask()


@pytest.mark.parametrize("turns", range(9))
async def test_closing_a_relay_ends_every_connection_whatever_it_was_doing(turns: int) -> None:
    async def never_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(never_answers, "127.0.0.1", 0)
    relay = Relay(("127.0.0.1", 0))
    relay.listen()
    relay.point_to([server.sockets[0].getsockname()[:2]])
    with socket.create_connection(relay.address) as client:  # the kernel has accepted it, the relay has not
        for _ in range(turns):
            await asyncio.sleep(0)
        relay.close()
        client.setblocking(False)
        try:
            told = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 1), 5)
        except ConnectionResetError:
            told = b""
        assert told == b""
    server.close()


async def test_what_was_begun_through_a_relay_that_is_retired_is_finished() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    relay = Relay(("127.0.0.1", 0))
    relay.listen()
    relay.point_to([server.sockets[0].getsockname()[:2]])
    reader, writer = await asyncio.open_connection(*relay.address)
    writer.write(b"begun, ")
    await writer.drain()
    while not relay.is_in_use:
        await asyncio.sleep(0.01)
    relay.retire()
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection(*relay.address)
    writer.write(b"and finished")
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 5) == b"begun, and finished"
    writer.close()
    while relay.is_in_use:
        await asyncio.sleep(0.01)
    server.close()


async def test_a_cancellation_that_comes_with_the_result_is_not_lost() -> None:
    for waits in (unless, None):
        done, never = asyncio.get_running_loop().create_future(), asyncio.Event()

        async def work(done: asyncio.Future[None] = done) -> None:
            await done

        waiting = asyncio.create_task(waits(never, work()) if waits else pause(5, never))
        for _ in range(3):
            await asyncio.sleep(0)
        done.set_result(None)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_work_that_is_given_up_has_ended_before_one_goes_on() -> None:
    stop, trace = asyncio.Event(), []

    async def work() -> str:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            trace.append("tidied up")
        return "done"

    asyncio.get_running_loop().call_soon(stop.set)
    assert (await unless(stop, work()), trace) == (None, ["tidied up"])


def test_the_node_never_waits_in_the_way_that_swallows_cancellations() -> None:
    folder = Path(node_package.__file__).parent
    assert [path.name for path in folder.glob("*.py") if "asyncio.wait_for(" in path.read_text()] == []
