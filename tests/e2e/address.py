"""The stable address of an InferenceService, as its clients reach it."""

from __future__ import annotations

import asyncio
import threading
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from kubernetes.client.exceptions import ApiException

from capstan_local.node.proxy import Address, Relay
from tests.e2e.cluster import NAMESPACE
from tests.e2e.services import Service

LOOK_SECONDS = 0.2


@contextmanager
def stable_address(service: Service) -> Iterator[Address]:
    """Host and port behind `status.url`.

    On the embedded cluster the node answers there. kube-apiserver refuses Endpoints in the loopback range, where our
    node has its pods, so with a real one nobody does: then a relay here leads to the ready pods that the Service
    selects, as kube-proxy would.
    """
    url = urllib.parse.urlsplit(service.status()["url"])
    assert url.hostname is not None
    assert url.port is not None
    if url.hostname.startswith("127."):
        yield url.hostname, url.port
        return
    with _relay_to(service, url.port) as address:
        yield address


@contextmanager
def _relay_to(service: Service, port: int) -> Iterator[Address]:
    listening: Future[Address] = Future()
    over = threading.Event()

    async def follow() -> None:
        relay = Relay(("127.0.0.1", 0))
        relay.listen()
        try:
            while not over.is_set():
                relay.point_to(await asyncio.to_thread(_ready_pods, service, port))
                if not listening.done():
                    listening.set_result(relay.address)
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            relay.close()

    with ThreadPoolExecutor(1, "kube-proxy") as pool:
        following = pool.submit(lambda: asyncio.run(follow()))
        try:
            yield listening.result(60)
        finally:
            over.set()
        following.result()


def _ready_pods(service: Service, port: int) -> list[Address]:
    """Those that the stable Service selects, are ready and are not on their way out; none when it is gone."""
    try:
        selector = service.cluster.core.read_namespaced_service(service.name, NAMESPACE).spec.selector
    except ApiException as error:
        if error.status == 404:
            return []
        raise
    return sorted(
        (pod.status.pod_ip, port)
        for pod in service.pods(selector)
        if pod.metadata.deletion_timestamp is None
        and any(entry.type == "Ready" and entry.status == "True" for entry in pod.status.conditions or [])
    )
