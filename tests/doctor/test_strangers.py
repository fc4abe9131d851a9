"""`capstan doctor`, `bench run` and `run` meet what is no API server, or one that does not answer."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from capstan_operator import cli
from capstan_operator.cluster.credentials import Credentials
from capstan_operator.cluster.kinds import TRAINING_JOBS
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.limiter import Limiter
from capstan_operator.metrics import Metrics
from capstan_operator.own_kind import wait_until_served

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
PAGE = ("text/html", b"<html>Please log in</html>")
BENCHMARK = {
    "apiVersion": "capstan.dev/v1alpha1",
    "kind": "Benchmark",
    "metadata": {"name": "io"},
    "spec": {
        "workload": {"checkpoint": {"state": "16MiB"}},
        "repetitions": 5,
        "results": {"store": {"claim": {"name": "bench"}}},
    },
}


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    """The URL of a server that answers everything so."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def always(content_type: str, body: bytes) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type=content_type)

    return answer


def version_alone(rest: Answer) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/version":
            return web.json_response({"gitVersion": "v1.34.1", "minor": "34"})
        return await rest(request)

    return answer


async def forbidden(_: web.Request) -> web.StreamResponse:
    return web.json_response({"kind": "Status", "reason": "Forbidden", "message": "no"}, status=403)


async def silent(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    raise AssertionError("whoever asked has not gone")


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    while True:
        await response.write(b" " * (1 << 20))


def kubeconfig(folder: Path, url: str) -> Path:
    path = folder / "kubeconfig"
    path.write_text(
        yaml.safe_dump(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c"}}],
                "clusters": [{"name": "c", "cluster": {"server": url}}],
            }
        )
    )
    return path


async def doctor(folder: Path, answer: Answer, *arguments: str) -> tuple[int, str]:
    """The exit code, and the URL that was asked."""
    async with serving(answer) as url:
        given = ["doctor", "--kubeconfig", str(kubeconfig(folder, url)), *arguments]
        return await asyncio.to_thread(cli.main, given), url


@pytest.mark.parametrize(
    ("content_type", "body", "what"),
    [
        (*PAGE, "GET /version with text/html"),
        ("application/json", b"\xff\xfe", "GET /version with what is no JSON"),
        ("application/json", b"[]", "GET /version with JSON that is no object"),
        ("application/json", b"null", "GET /version with JSON that is no object"),
        ("application/json", b"{}", "GET /version with no gitVersion"),
        ("application/json", b'{"gitVersion": 1}', "GET /version with no gitVersion"),
        ("application/json", b'{"gitVersion": "v1.34.1", "items": 1}', "items that are no list of objects"),
        ("application/json", b'{"gitVersion": "v1.34.1", "groups": [1]}', "groups that are no list of objects"),
    ],
)
async def test_what_is_no_api_server_is_called_so_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content_type: str, body: bytes, what: str
) -> None:
    code, url = await doctor(tmp_path, always(content_type, body))
    told = capsys.readouterr()
    assert (code, told.out, told.err.count("\n")) == (1, "", 1)
    assert told.err.startswith(f"capstan doctor: {url} is no Kubernetes API server: it answers GET /")
    assert what in told.err


async def test_a_benchmark_is_not_given_to_a_login_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.yaml"
    file.write_text(yaml.safe_dump(BENCHMARK))
    async with serving(always(*PAGE)) as url:
        given = ["bench", "run", str(file), "--kubeconfig", str(kubeconfig(tmp_path, url))]
        code = await asyncio.to_thread(cli.main, given)
    told = capsys.readouterr()
    assert (code, told.out, told.err.count("\n")) == (1, "", 1)
    assert told.err.startswith(f"capstan bench run: {url} is no Kubernetes API server: it answers POST /apis/")


async def test_an_operator_that_waits_at_a_login_page_says_so() -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    async with (
        serving(always(*PAGE)) as url,
        KubeClient(Credentials(url), Limiter(), Metrics()) as client,
    ):
        waiting = asyncio.create_task(wait_until_served(client, TRAINING_JOBS, told.put_nowait))
        problem = await asyncio.wait_for(told.get(), 20)
        waiting.cancel()
    assert problem.startswith(f"{url} is no Kubernetes API server: it answers GET /apis/capstan.dev/v1alpha1 with text")


async def test_an_answer_without_end_is_not_read_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = await doctor(tmp_path, endless)
    told = capsys.readouterr()
    assert (code, told.out) == (1, "")
    assert told.err == f"capstan doctor: AnswerTooLong (0): GET /version: the answer is longer than {8 << 20} bytes\n"


async def test_a_server_that_hangs_is_named_with_what_it_was_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, url = await doctor(tmp_path, silent, "--timeout", "0.2")
    told = capsys.readouterr()
    late = f"{url} has not answered GET /version within 0.2 s; raise --timeout"
    assert (code, told.out, told.err) == (1, "", f"capstan doctor: NoAnswer (0): {late}\n")


async def test_what_was_answered_in_time_is_told_and_the_rest_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, url = await doctor(tmp_path, version_alone(silent), "--timeout", "2")
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert (code, told.err) == (1, "")
    assert lines[1].split() == ["OK", "version", "v1.34.1", "at", f"{url},", "with", "CEL"]
    assert "  FAIL  answers                    not all was answered within 2 s" in lines
    assert f"{url} has not answered GET /api/v1/nodes within 2 s;" in " ".join(told.out.split())
    assert re.fullmatch(
        r"2 OK, 0 WARN, 1 FAIL, \d\d SKIP: what was skipped was not looked at, and may be wrong", lines[-1]
    )


async def test_who_has_read_enough_ends_it_without_a_word(tmp_path: Path) -> None:
    async with serving(version_alone(forbidden)) as url:
        reads, writes = os.pipe()
        os.close(reads)
        command = [sys.executable, "-m", "capstan_operator", "doctor", "--kubeconfig", str(kubeconfig(tmp_path, url))]
        ended = await asyncio.to_thread(
            subprocess.run, command, stdout=writes, stderr=subprocess.PIPE, text=True, check=False, timeout=120
        )
        os.close(writes)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["doctor", "-n", "UPPER/.."], "argument -n/--namespace: 'UPPER/..' cannot be a namespace; give 1 to 63 of"),
        (["doctor", "--timeout", "abc"], "argument --timeout: 'abc' is not a number of seconds"),
        (["doctor", "--timeout", "inf"], "argument --timeout: 'inf' is not a number of seconds above 0"),
        (["run", "--namespace", "A B"], "argument --namespace: 'A B' cannot be a namespace"),
        (["run", "--url", "rubbish"], "argument --url: 'rubbish' is no URL; give http://HOST:PORT"),
        (["run", "--url", "http://host:99999"], "argument --url: 'http://host:99999' is no URL"),
        (["run", "--port", "abc"], "argument --port: 'abc' is not a port; choose 0 to 65535"),
        (["local", "up", "--nodes", "two"], "argument --nodes: 'two' is not a whole number"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_that_cannot_be_is_wrong_usage(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert problem in capsys.readouterr().err


async def test_a_host_that_nobody_knows_is_told_by_its_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "capstan_operator", "run", "--host", "no such host", "--port", "0"]
    command += ["--kubeconfig", str(kubeconfig(tmp_path, "http://127.0.0.1:1"))]
    ended = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 1
    assert "--host: no such host is no address of this machine: " in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "cannot be read: No such file or directory"),
        ("- a", "holds a list; a kubeconfig is an object"),
        ("[]", "holds a list; a kubeconfig is an object"),
        ("a: [", "is no YAML: "),
        (
            yaml.safe_dump(
                {
                    "current-context": "c",
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                    "clusters": [{"name": "c", "cluster": {"server": "rubbish"}}],
                    "users": [{"name": "u", "user": {"token": "t"}}],
                }
            ),
            "cluster.server: rubbish is no URL; give https://HOST:PORT",
        ),
    ],
)
def test_a_node_that_cannot_join_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, problem: str
) -> None:
    path = tmp_path / "kubeconfig"
    if text is not None:
        path.write_text(text)
    code = cli.main(["local", "node", "--home", str(tmp_path / "home"), "--kubeconfig", str(path)])
    told = capsys.readouterr().err
    assert (code, told.count("\n")) == (2, 1)
    assert told.startswith(f"capstan local node: --kubeconfig: {path}: {problem}")


def test_a_home_that_cannot_be_made_is_told_by_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["local", "up", "--home", "/proc/x"]) == 1
    assert capsys.readouterr().err.startswith("capstan local up: --home: /proc/x cannot be made: ")
