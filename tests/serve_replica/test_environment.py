"""What Ray is told."""

import os
from pathlib import Path

import pytest

from capstan_runtime.serve_replica.environment import cores, ray_environment

ALLOWED = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max 100000", ALLOWED),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("6400000 100000", min(64, ALLOWED)),
        ("nonsense", ALLOWED),
    ],
)
def test_a_replica_computes_with_the_whole_cores_of_its_container(tmp_path: Path, limit: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert cores(tmp_path / "cpu.max") == expected


def test_without_a_control_group_it_has_those_it_may_run_on(tmp_path: Path) -> None:
    assert cores(tmp_path / "absent") == ALLOWED


def test_each_ray_has_a_token_of_its_own_and_never_joins_another() -> None:
    given = {"RAY_ADDRESS": "10.0.0.1:6379", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "3", "PATH": "/bin"}
    first, second = ray_environment(given), ray_environment(given)
    assert first.pop("RAY_AUTH_TOKEN") != second.pop("RAY_AUTH_TOKEN")
    assert first == second
    assert "RAY_ADDRESS" not in first
    assert (first["RAY_AUTH_MODE"], first["OMP_NUM_THREADS"], first["PATH"]) == ("token", "3", "/bin")
