"""`make e2e-kind` calls what it should, and deletes the cluster that it made and no other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "scripts" / "e2e_kind.sh"
TOOLS = ("docker", "kind", "kubectl", "helm", "make")
DELETES = "kind delete cluster --name capstan-e2e"


class Tools:
    """Programs that only write down how they were called; beside them there is only what every machine has."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("bash", "dirname", "grep", "mktemp", "rm", "sed", "sh"):
            found = shutil.which(name)
            assert found is not None, name
            (folder / name).symlink_to(found)
        for name in TOOLS:
            self.answer(name, "")

    def answer(self, name: str, script: str) -> None:
        """What it does besides."""
        path = self._folder / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>"{self._folder}/calls"\n{script}\n')
        path.chmod(0o755)

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(SCRIPT), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=os.environ | {"PATH": str(self._folder), "PYTHON": sys.executable} | environ,
        )

    def calls(self) -> list[str]:
        path = self._folder / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(tmp_path)


def test_a_failure_deletes_the_cluster_that_was_made(tools: Tools) -> None:
    tools.answer("helm", "exit 7")
    ended = tools.run()
    assert ended.returncode == 7
    assert tools.calls()[-1] == DELETES
    assert not [call for call in tools.calls() if call.startswith("kubectl apply")]


def test_a_cluster_of_that_name_that_was_there_before_is_left_alone(tools: Tools) -> None:
    tools.answer("kind", "echo capstan-e2e")
    ended = tools.run()
    assert (ended.returncode, "may be somebody's" in ended.stderr) == (1, True)
    assert tools.calls() == ["docker info", "kind get clusters"]


def test_a_cluster_that_could_not_be_made_is_not_deleted(tools: Tools) -> None:
    tools.answer("kind", '[ "$1" = create ] && exit 3')
    assert tools.run().returncode == 3
    assert DELETES not in tools.calls()


def test_a_cluster_that_is_to_be_kept_is(tools: Tools) -> None:
    tools.answer("helm", "exit 7")
    ended = tools.run(KEEP="1")
    assert DELETES not in tools.calls()
    assert DELETES in ended.stdout


def test_a_tool_that_is_missing_is_named_with_what_to_do_instead(tmp_path: Path) -> None:
    tools = Tools(tmp_path)
    (tmp_path / "kind").unlink()
    ended = tools.run()
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == ("e2e_kind.sh: kind is not on PATH; install it, or use the embedded cluster: make demo\n")


def test_a_dry_run_says_all_that_would_be_done_and_does_nothing(tools: Tools) -> None:
    ended = tools.run("--dry-run")
    assert (ended.returncode, tools.calls()) == (0, [])
    told = [line.split()[0:2] for line in ended.stdout.splitlines() if line.startswith("    ")]
    assert told == [
        ["make", "images"],
        ["kind", "create"],
        ["kind", "load"],
        ["helm", "install"],
        ["kubectl", "apply"],
        ["kubectl", "wait"],
        ["kubectl", "get"],
        [sys.executable, "-m"],
        ["helm", "uninstall"],
        ["kubectl", "get"],
        ["kind", "delete"],
    ]


def test_the_configuration_has_one_node_and_the_example_a_claim_that_pods_of_one_node_can_share() -> None:
    cluster = yaml.safe_load((REPOSITORY / "tests/kind/cluster.yaml").read_text())
    assert [node["role"] for node in cluster["nodes"]] == ["control-plane"]
    claim, job = yaml.safe_load_all((REPOSITORY / "examples/digits-flax/job.yaml").read_text())
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]  # what the script replaces
    assert job["metadata"]["name"] == "digits-flax"
