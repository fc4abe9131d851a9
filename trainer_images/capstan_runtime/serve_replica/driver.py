"""`python -m capstan_runtime.serve_replica.driver FOLDER PARENT`: Ray Serve, which keeps one replica alive."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from ray import serve

from capstan_runtime.serve_replica.family import die_with_parent
from capstan_runtime.serve_replica.one_node import start_ray
from capstan_runtime.serve_replica.replica import Replica
from capstan_runtime.serve_replica.settings import read_settings

_HEALTH_SECONDS = 2.0
"""How often Serve asks whether the replica is healthy: how soon it sees that it died."""
STARTS = 3
"""How often Serve tries to get a replica up."""


def main(folder: Path, parent: int) -> NoReturn:
    """This process ends when Ray is broken. Raises what kept it from starting."""
    die_with_parent(parent)
    began = time.monotonic()
    start_ray(folder)
    ray_seconds = time.monotonic() - began
    # Without a proxy: the replica answers clients itself.
    serve.start(proxy_location="Disabled")
    print(f"Ray took {ray_seconds:.1f} s, Serve {time.monotonic() - began - ray_seconds:.1f} s", flush=True)
    timeout_seconds = read_settings(os.environ).config.guards.timeout_seconds
    deploy = serve.deployment(
        name="replica",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=_HEALTH_SECONDS,
        health_check_timeout_s=max(30.0, 2 * timeout_seconds),  # it waits for its turn among the batches
        graceful_shutdown_timeout_s=1.0,  # draining is the pod's business: Serve only stops what does not work
        graceful_shutdown_wait_loop_s=0.1,
        max_constructor_retry_count=STARTS,
    )
    serve.run(deploy(Replica).bind(), name="capstan", route_prefix=None)
    while True:
        signal.pause()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
