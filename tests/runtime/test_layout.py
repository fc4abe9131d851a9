"""Which device holds what, where one model is spread over several."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_runtime.contract.parallelism import Parallelism
from capstan_runtime.parallel.layout import AXES, Layout

DEGREES = st.integers(1, 4)


@given(DEGREES, DEGREES, DEGREES, DEGREES, DEGREES)
def test_every_device_has_a_place_of_its_own_and_one_group_along_any_axes(
    data: int, pipeline: int, sequence: int, tensor: int, expert: int
) -> None:
    asked = Parallelism(pipeline=pipeline, sequence=sequence, tensor=tensor, expert=expert)
    layout = Layout.of(asked, data * expert * asked.devices)
    assert layout.shape == (data * expert, pipeline, sequence, tensor)
    everyone = list(range(layout.devices))
    places = [tuple(layout.coordinate(device, axis) for axis in AXES) for device in everyone]
    assert places == sorted(set(places)), "the tensor coordinate changes fastest"
    for axes in (["tensor"], ["pipeline", "tensor"], ["data", "sequence"], list(AXES)):
        groups = layout.groups(axes)
        assert sorted(device for group in groups for device in group) == everyone
        for group in groups:
            stay = {tuple(layout.coordinate(d, axis) for axis in AXES if axis not in axes) for d in group}
            assert len(stay) == 1
    sharing, same = layout.expert_groups(), layout.same_expert_groups()
    for groups, size in ((sharing, expert), (same, data)):
        assert sorted(device for group in groups for device in group) == everyone
        assert {len(group) for group in groups} == {size}
    assert all(len(set(one) & set(other)) <= 1 for one in sharing for other in same)


def test_the_devices_of_one_replica_follow_each_other() -> None:
    layout = Layout.of(Parallelism(tensor=2, sequence=2), 8)
    assert layout.groups(["pipeline", "sequence", "tensor"]) == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert layout.groups(["tensor"]) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert layout.groups(["data"]) == [(0, 4), (1, 5), (2, 6), (3, 7)]


@pytest.mark.parametrize(
    ("asked", "devices", "reason"),
    [
        (Parallelism(tensor=2), 3, "3 devices are no multiple of the 2 that hold one replica"),
        (Parallelism(tensor=2, expert=2), 6, "3 replicas are no multiple of the 2 that share the experts"),
    ],
)
def test_devices_left_over_are_refused(asked: Parallelism, devices: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Layout.of(asked, devices)
