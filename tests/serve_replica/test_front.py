"""Where a pod listens."""

import pytest

from capstan_runtime.serve_replica.front import listening_address


@pytest.mark.parametrize(
    ("pod_ip", "listens_on"),
    [("10.244.1.7", "0.0.0.0"), ("fd00:10:244::7", "::"), ("127.7.3.1", "127.7.3.1"), ("::1", "::1")],
)
def test_a_pod_with_a_network_of_its_own_is_reached_at_localhost_too(pod_ip: str, listens_on: str) -> None:
    assert listening_address(pod_ip) == listens_on
