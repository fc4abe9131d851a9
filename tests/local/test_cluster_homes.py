"""What a home keeps from start to start, and what several clusters of one machine must not share."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from capstan_local.cluster import LocalControlPlane
from capstan_local.node.memory import MemoryVolumes, NoMemory
from capstan_local.server.service_network import RANGES, RangeInUse, service_network


def test_every_home_has_its_own_service_addresses_and_keeps_them(tmp_path: Path) -> None:
    homes = [tmp_path / name for name in ("one", "two")]
    for home in homes:
        home.mkdir()
    with service_network(homes[0]) as first, service_network(homes[1]) as second:
        assert first != second
        assert {first, second} <= set(RANGES)
    # Even when the ranges that both would have chosen are all free again.
    with service_network(homes[1]) as again:
        assert again == second


def test_a_range_that_another_cluster_uses_now_is_not_shared(tmp_path: Path) -> None:
    with service_network(tmp_path) as network:
        copy = tmp_path / "copy"
        copy.mkdir()
        (copy / "service-network").write_text(f"{network}\n")
        with (
            pytest.raises(RangeInUse, match=f"{copy}, {network}, are in use by another cluster"),
            service_network(copy),
        ):
            pass


async def test_the_port_stays_the_same_until_somebody_else_has_it(tmp_path: Path) -> None:
    async with LocalControlPlane(tmp_path) as plane:
        first = plane.url
    async with LocalControlPlane(tmp_path) as plane:
        assert plane.url == first
    with socket.create_server(("127.0.0.1", int(first.rpartition(":")[2]))):
        async with LocalControlPlane(tmp_path) as plane:
            second = plane.url
            assert second != first
    async with LocalControlPlane(tmp_path) as plane:
        assert plane.url == second


def test_memory_left_behind_is_freed_but_not_that_of_others(tmp_path: Path) -> None:
    tmpfs, gone, here, mine = (tmp_path / name for name in ("shm", "gone", "here", "mine"))
    for folder in (tmpfs, gone, here, mine):
        folder.mkdir()
    kept = MemoryVolumes(here, tmpfs).make("uid", "memory", 1)
    lost = MemoryVolumes(gone, tmpfs).make("uid", "memory", 1)
    gone.rmdir()
    earlier = MemoryVolumes(mine, tmpfs).make("uid", "memory", 1)
    stranger = tmpfs / f"local-node-{os.getuid()}-unknown"
    stranger.mkdir()
    memory = MemoryVolumes(mine, tmpfs)
    memory.sweep()
    assert [path.exists() for path in (kept, lost, earlier, stranger)] == [True, False, False, True]

    again = memory.make("uid", "memory", 1)
    (again / "file").touch()
    assert memory.make("uid", "memory", 1 << 60) == again  # it is there already, whatever is free now
    memory.remove("uid")
    assert not again.exists()


def test_memory_that_cannot_be_had_is_explained(tmp_path: Path) -> None:
    with pytest.raises(NoMemory, match=r"has \d+ MiB free, 1099511627776 MiB are asked for"):
        MemoryVolumes(tmp_path, tmp_path).make("uid", "memory", 1 << 60)
    with pytest.raises(NoMemory, match="absent: No such file or directory"):
        MemoryVolumes(tmp_path, tmp_path / "absent").make("uid", "memory", None)
