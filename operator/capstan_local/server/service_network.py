"""The range of loopback addresses out of which one cluster gives its Services theirs.

Several clusters may run on a machine, and every node of each listens on the addresses of its Services: two clusters
with one range would answer for each other.
"""

import hashlib
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ALL_SERVICES = ipaddress.IPv4Network("127.96.0.0/12")
"""What nodes leave to Services: pods have their addresses in 127.64.0.0/11."""
RANGES = list(ALL_SERVICES.subnets(new_prefix=22))
"""1,024 ranges of 1,022 addresses."""


class RangeInUse(OSError):
    """Another cluster of this machine answers on this home's range; only one of the two can run."""


@contextmanager
def service_network(home: Path) -> Iterator[ipaddress.IPv4Network]:
    """The range of the cluster at `home`, nobody else's while the context is open.

    Chosen at the first start among those that no running cluster has, and kept in `home/service-network`: addresses
    that Services have got stay valid. Raises RangeInUse when another cluster has it now.
    """
    file = home / "service-network"
    if file.exists():
        candidates = [ipaddress.IPv4Network(file.read_text().strip())]
    else:
        first = int(hashlib.sha256(str(home.resolve()).encode()).hexdigest(), 16) % len(RANGES)
        candidates = [*RANGES[first:], *RANGES[:first]]
    for network in candidates:
        # An abstract name is free again when this process ends, however it ends.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as claim:
            try:
                claim.bind(f"\0local-cluster-services-{network.network_address}")
            except OSError:
                continue
            file.write_text(f"{network}\n")
            yield network
            return
    raise RangeInUse(
        f"the Service addresses of {home}, {candidates[0]}, are in use by another cluster of this machine; "
        "stop that one first"
    )
