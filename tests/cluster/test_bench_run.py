"""`capstan bench run` against the embedded API server, with a status that somebody else writes."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from capstan_operator import bench_run
from capstan_operator.cli import main
from capstan_operator.crdgen import benchmark_crd
from tests.support.embedded_server import Embedded, embedded, eventually

EXAMPLES = Path(__file__).parents[2] / "examples"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
BENCHMARKS = "/apis/capstan.dev/v1alpha1/namespaces/default/benchmarks"
MERGE = "application/merge-patch+json"
SPEC = {
    "workload": {"checkpoint": {"state": "16MiB"}},
    "repetitions": 5,
    "results": {"store": {"claim": {"name": "bench"}}},
}
CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "bench"},
    "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
}
REPORT = {
    "place": "/nowhere/default/io/uid",
    "digest": f"blake3:{'0' * 64}",
    "log": "io-report",
    "judged": "0123456789ab",
}
SUCCEEDED: dict[str, Any] = {
    "phase": "Succeeded",
    "result": "210 ms ±2.0 % at library capstan",
    "figures": [
        {
            "metric": "save_seconds",
            "case": "library=capstan",
            "unit": "s",
            "n": 5,
            "median": 0.21,
            "low": 0.206,
            "high": 0.214,
        }
    ],
    "report": REPORT,
}
REGRESSED = SUCCEEDED | {
    "verdict": "Regressed",
    "verdictReason": "save seconds: +12.0 % [+9.1, +15.0], and 5 % counts",
    "comparisons": [
        {
            "metric": "save_seconds",
            "baseline": 0.1875,
            "candidate": 0.21,
            "effectPercent": 12.0,
            "lowPercent": 9.1,
            "highPercent": 15.0,
            "pValue": 0.008,
            "verdict": "Regressed",
        }
    ],
}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Embedded]:
    async with embedded(tmp_path / "home") as one:
        await one.call("POST", CRDS, benchmark_crd(), code=201)

        async def is_served() -> bool:
            async with one.session.get(BENCHMARKS) as answer:
                return answer.status == 200

        await eventually(is_served)
        yield one


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_run, "LOOK_SECONDS", 0.02)


def manifest(folder: Path, *documents: dict[str, Any], **spec: Any) -> Path:
    benchmark = {
        "apiVersion": "capstan.dev/v1alpha1",
        "kind": "Benchmark",
        "metadata": {"name": "io"},
        "spec": SPEC | spec,
    }
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump_all([*documents, benchmark]))
    return path


class Follower:
    """The command in a thread of its own, and what it has printed."""

    def __init__(self, server: Embedded, capsys: pytest.CaptureFixture[str], *arguments: object) -> None:
        self._capsys = capsys
        self.out = self.err = ""
        given = ["bench", "run", "--kubeconfig", str(server.plane.kubeconfig_path), *map(str, arguments)]
        self._ended = asyncio.ensure_future(asyncio.to_thread(main, given))

    async def prints(self, text: str) -> None:
        """Returns once it has printed `text`."""

        async def look() -> bool:
            self._read()
            assert not self._ended.done() or text in self.out + self.err, self.out + self.err
            return text in self.out + self.err

        await eventually(look)

    async def code(self) -> int:
        code = await asyncio.wait_for(self._ended, 20)
        self._read()
        return code

    def _read(self) -> None:
        captured = self._capsys.readouterr()
        self.out += captured.out
        self.err += captured.err


async def say(server: Embedded, **status: Any) -> None:
    await server.call(
        "PATCH",
        f"{BENCHMARKS}/io/status",
        {"status": {"observedGeneration": 1, **status}},
        code=200,
        content_type=MERGE,
    )


async def end(
    server: Embedded, capsys: pytest.CaptureFixture[str], folder: Path, status: dict[str, Any], *arguments: object
) -> tuple[int, Follower]:
    """The exit code for a Benchmark that ends so."""
    follower = Follower(server, capsys, manifest(folder), *arguments)
    await follower.prints("created")
    await say(server, **status)
    return await follower.code(), follower


async def test_a_benchmark_and_its_claim_are_created_followed_and_told(
    server: Embedded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    follower = Follower(server, capsys, manifest(tmp_path, CLAIM))
    await follower.prints("Pending: the operator has not seen it yet")
    await server.call("GET", "/api/v1/namespaces/default/persistentvolumeclaims/bench", code=200)
    running = {"trial": "t02", "attempt": 2, "startedAt": "2026-11-29T02:00:00Z"}
    repeats = [{"trial": "t02", "attempt": 1, "reason": "the pod was evicted"}]
    progress = {"done": 2, "total": 5, "summary": "2/5"}
    await say(server, phase="Running", progress=progress, running=running, repeats=repeats)
    await follower.prints("run 3/5 (t02), attempt 2\n")
    await say(server, phase="Reporting", progress={"done": 5, "total": 5, "summary": "5/5"}, running=None)
    await follower.prints("every run is done; the report is made")
    await say(server, **REGRESSED)
    assert await follower.code() == 3
    lines = [line.split(" ", 1)[1] if line[2:3] == ":" else line for line in follower.out.splitlines()]
    assert lines == [
        "benchmark default/io created",
        "Pending: the operator has not seen it yet",
        "t02 attempt 1 failed and is repeated: the pod was evicted",
        "run 3/5 (t02), attempt 2",
        "every run is done; the report is made",
        "",
        "Regressed: save seconds: +12.0 % [+9.1, +15.0], and 5 % counts",
        "210 ms ±2.0 % at library capstan",
        "",
        "METRIC        AT               MEDIAN  INTERVAL      N",
        "save_seconds  library=capstan  210 ms  206 – 214 ms  5",
        "n = 5: the interval is from smallest to largest run; it holds the true median in 93.8 % of cases",
        "",
        "METRIC        AT  BASELINE  NOW   EFFECT                 P      VERDICT",
        "save_seconds  -   0.1875    0.21  +12.0 % [+9.1, +15.0]  0.008  Regressed",
        "",
        "report: /nowhere/default/io/uid/report.html, in claim bench",
        "        kubectl -n default logs io-report",
    ]
    assert follower.err == ""


async def test_the_exit_code_is_the_end(server: Embedded, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends: list[tuple[dict[str, Any], int, str]] = [
        (SUCCEEDED, 0, ""),
        (SUCCEEDED | {"verdict": "Passed"}, 0, ""),
        (SUCCEEDED | {"verdict": "Improved"}, 0, ""),
        (SUCCEEDED | {"verdict": "Inconclusive"}, 4, ""),
        ({"phase": "Failed", "message": "run t00 failed 3 times"}, 1, "is Failed: run t00 failed 3 times"),
        ({"phase": "Invalid", "message": "spec.pods: a\nspec.seed: b"}, 1, "is Invalid: spec.pods: a spec.seed: b"),
    ]
    for status, code, said in ends:
        found, follower = await end(server, capsys, tmp_path, status)
        assert found == code
        assert follower.err == (f"capstan bench run: Benchmark default/io {said}\n" if said else "")
        await server.call("DELETE", f"{BENCHMARKS}/io", code=200)


async def test_a_status_of_an_older_spec_is_not_the_end(
    server: Embedded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await end(server, capsys, tmp_path, SUCCEEDED)
    patch = {"spec": {"trialDeadlineSeconds": 60}}
    await server.call("PATCH", f"{BENCHMARKS}/io", patch, code=200, content_type=MERGE)
    follower = Follower(server, capsys, manifest(tmp_path, trialDeadlineSeconds=60))
    await follower.prints("is there already; following it")
    await say(server, observedGeneration=1, phase="Running", progress={"done": 0, "total": 5, "summary": "0/5"})
    await follower.prints("Running: ")
    await say(server, observedGeneration=2, **SUCCEEDED)
    assert await follower.code() == 0


async def test_the_same_benchmark_is_followed_and_another_refused(
    server: Embedded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    follower = Follower(server, capsys, manifest(tmp_path))
    await follower.prints("created")
    again = Follower(server, capsys, manifest(tmp_path, CLAIM, seed=0))
    await again.prints("benchmark default/io is there already; following it\n")
    await say(server, **SUCCEEDED)
    assert [await follower.code(), await again.code()] == [0, 0]
    other = Follower(server, capsys, manifest(tmp_path, repetitions=7))
    assert await other.code() == 1
    assert other.err == (
        "capstan bench run: Benchmark default/io is there with another spec (differs in repetitions); give this one a "
        "new metadata.name, or delete the other: kubectl -n default delete benchmark io\n"
    )


async def test_the_verdict_of_one_that_had_ended_before_is_not_given_again(
    server: Embedded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await end(server, capsys, tmp_path, SUCCEEDED | {"verdict": "Passed", "finishedAt": "2026-11-29T04:00:00Z"})
    again = Follower(server, capsys, manifest(tmp_path))
    assert await again.code() == 1
    assert (again.out, again.err) == (
        "",
        "capstan bench run: Benchmark default/io finished at 2026-11-29T04:00:00Z, and nothing was measured now; give "
        "this one a new metadata.name, or --rerun, which deletes that one and measures anew\n",
    )


async def test_a_rerun_measures_anew_once_the_old_one_is_gone(
    server: Embedded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await end(server, capsys, tmp_path, SUCCEEDED)
    hold = {"metadata": {"finalizers": ["example.com/hold"]}}
    await server.call("PATCH", f"{BENCHMARKS}/io", hold, code=200, content_type=MERGE)
    before = await server.call("GET", f"{BENCHMARKS}/io", code=200)
    rerun = Follower(server, capsys, manifest(tmp_path), "--rerun")
    await rerun.prints("benchmark default/io has ended and is deleted\n")
    assert "created" not in rerun.out
    await server.call("PATCH", f"{BENCHMARKS}/io", {"metadata": {"finalizers": None}}, code=200, content_type=MERGE)
    await rerun.prints("benchmark default/io created\n")
    now = await server.call("GET", f"{BENCHMARKS}/io", code=200)
    assert now["metadata"]["uid"] != before["metadata"]["uid"]
    await say(server, **SUCCEEDED | {"verdict": "Regressed"})
    assert await rerun.code() == 3


async def test_a_rerun_of_one_that_still_runs_or_was_never_made_only_follows_it(
    server: Embedded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rerun = Follower(server, capsys, manifest(tmp_path), "--rerun")
    await rerun.prints("benchmark default/io created\n")
    again = Follower(server, capsys, manifest(tmp_path), "--rerun")
    await again.prints("is there already; following it")
    await say(server, **SUCCEEDED)
    assert [await rerun.code(), await again.code()] == [0, 0]


async def test_one_that_takes_too_long_goes_on(
    server: Embedded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    follower = Follower(server, capsys, manifest(tmp_path), "--timeout", "0.3")
    assert await follower.code() == 1
    assert "Benchmark default/io is not done after 0.3 s, and goes on" in follower.err
    await server.call("GET", f"{BENCHMARKS}/io", code=200)


async def test_one_that_is_deleted_meanwhile_is_an_error(
    server: Embedded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    follower = Follower(server, capsys, manifest(tmp_path))
    await follower.prints("Pending")
    await server.call("DELETE", f"{BENCHMARKS}/io", code=200)
    assert await follower.code() == 1
    assert "Benchmark default/io was deleted before it was done" in follower.err


async def test_what_the_api_server_refuses_is_said(
    server: Embedded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    follower = Follower(server, capsys, manifest(tmp_path), "--namespace", "nobody")
    assert await follower.code() == 1
    assert follower.err.startswith(
        "capstan bench run: NotFound (404): POST /apis/capstan.dev/v1alpha1/namespaces/nobody/"
    )


async def test_ctrl_c_leaves_the_benchmark_and_says_so(server: Embedded, tmp_path: Path) -> None:
    # What a shell runs in the background ignores Ctrl-C, and so would all that these tests start there.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{heed}; from capstan_operator.cli import main; raise SystemExit(main())"]
    command += ["bench", "run", "--kubeconfig", str(server.plane.kubeconfig_path), str(manifest(tmp_path))]
    process = await asyncio.to_thread(
        subprocess.Popen, command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert await asyncio.to_thread(process.stdout.readline) == "benchmark default/io created\n"
        await asyncio.to_thread(process.stdout.readline)  # it looks, and has said what it sees
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.to_thread(process.communicate, timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err == (
        "capstan bench run: stopped looking; Benchmark io goes on. The same command follows it again, kubectl delete "
        "benchmark io ends it\n"
    )
    await server.call("GET", f"{BENCHMARKS}/io", code=200)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "cannot be read"),
        ("", "holds 0 Benchmarks; give a file with one"),
        ("kind: Deployment", "holds a Deployment; only a Benchmark and PersistentVolumeClaim"),
        ("- 1", "holds a None; only a Benchmark"),
        ("{apiVersion: capstan.dev/v1alpha1, kind: Benchmark}", "a Benchmark has no metadata.name; give it one"),
        (
            "{apiVersion: capstan.dev/v1alpha1, kind: Benchmark, metadata: {name: a}, spec: {repetitions: 0}}",
            "spec.workload: Field required",
        ),
    ],
)
def test_a_file_that_is_no_benchmark_is_wrong_usage(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert main(["bench", "run", str(tmp_path / "x.yaml")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "path", sorted(EXAMPLES.glob("bench-*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_every_example_can_be_run(path: Path) -> None:
    assert bench_run.read_manifests(path).benchmark["kind"] == "Benchmark"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"\n    {name} " in shown for name in ("run", "report", "compare", "gate"))
