"""Runs all controllers on one set of informers."""

import asyncio

from capstan_local.client import Client
from capstan_local.controllers.accounts import ServiceAccountController
from capstan_local.controllers.claims import ClaimProtectionController
from capstan_local.controllers.deployment import DeploymentController
from capstan_local.controllers.endpoints import EndpointsController
from capstan_local.controllers.job import JobController
from capstan_local.controllers.replica_set import ReplicaSetController
from capstan_local.controllers.scheduler import Scheduler
from capstan_local.controllers.shared import Controller, Shared
from capstan_local.node.events import EventRecorder


async def run_controllers(client: Client, stop: asyncio.Event) -> None:
    """Until `stop` is set. Not for clusters with controllers of their own: both would act.

    An error in a controller that is not the API server's ends them all, with that error.
    """
    shared = Shared(client, EventRecorder(client, "capstan-local-controllers"))
    controllers: list[Controller] = [
        Scheduler(shared),
        DeploymentController(shared),
        ReplicaSetController(shared),
        JobController(shared),
        EndpointsController(shared),
        ServiceAccountController(shared),
        ClaimProtectionController(shared),
    ]
    work = asyncio.create_task(_run_all(shared, controllers))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        for task in (work, stopping):
            task.cancel()
        await asyncio.gather(work, stopping, return_exceptions=True)


async def _run_all(shared: Shared, controllers: list[Controller]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(shared.run())
        await shared.synced()
        for controller in controllers:
            group.create_task(controller.run())
