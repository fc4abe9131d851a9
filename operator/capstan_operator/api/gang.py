"""workers.gang: a scheduler that places the fewest workers to go on with together, or none of them."""

from typing import Annotated

from pydantic import Field

from capstan_runtime.contract.base import OneOf, Record

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", max_length=63)]


class VolcanoGang(Record):
    """A PodGroup of Volcano's."""

    queue: Annotated[Name | None, Field(description="Volcano Queue. Left out: default.")] = None


class SchedulerPluginsGang(Record):
    """A PodGroup of the coscheduling plugin of kubernetes-sigs/scheduler-plugins."""

    scheduler_name: Annotated[Name, Field(description="Name of the scheduler that has the plugin.")] = (
        "scheduler-plugins-scheduler"
    )


class Gang(OneOf):
    """Which scheduler's PodGroup is made."""

    volcano: Annotated[VolcanoGang | None, Field(description="Volcano schedules the pods.")] = None
    scheduler_plugins: Annotated[
        SchedulerPluginsGang | None, Field(description="The coscheduling plugin schedules the pods.")
    ] = None


class GangStatus(Record):
    """The PodGroup as it was last applied."""

    name: Annotated[str, Field(description="Of the PodGroup.")]
    scheduler: Annotated[str, Field(description="volcano or schedulerPlugins.")]
    queue: Annotated[str | None, Field(description="Volcano Queue; absent: default.")] = None
    min_member: Annotated[int, Field(description="Pods that are placed together, or none of them.")]
