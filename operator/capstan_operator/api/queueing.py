"""Kueue's names, and what status says of the queue that a job's pods wait in."""

from typing import Annotated

from pydantic import Field

from capstan_runtime.contract.base import Record

LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
"""On an object of ours and on its pods: name of the LocalQueue that admits them."""
LABEL_PRIORITY_CLASS = "kueue.x-k8s.io/priority-class"
"""The same: name of the WorkloadPriorityClass."""
LABEL_GROUP = "kueue.x-k8s.io/pod-group-name"
ANNOTATION_GROUP_SIZE = "kueue.x-k8s.io/pod-group-total-count"
ANNOTATION_ROLE = "kueue.x-k8s.io/role-hash"
"""Pods of a group that take the same room have the same."""
ANNOTATION_RETRIABLE = "kueue.x-k8s.io/retriable-in-group"
"""On any pod of a group, `false`: none that fails is followed by another, so that the group is over with its pods."""
STOPPED_BY_QUEUE = "TerminationTarget"
"""The condition that Kueue sets on a pod before it deletes it."""


class PodGroupStatus(Record):
    """Workers that Kueue admits together, or not at all."""

    name: Annotated[str, Field(description="Of the group, and of Kueue's Workload.")]
    first: Annotated[int, Field(description="Lowest worker in it.")]
    size: Annotated[int, Field(description="How many workers are in it.")]

    @property
    def end(self) -> int:
        """One above the highest worker in it."""
        return self.first + self.size


class QueueStatus(Record):
    """The queue that admits the job's pods. What it is stays as long as a group does."""

    name: Annotated[str, Field(description="Name of the LocalQueue.")]
    priority_class: Annotated[str | None, Field(description="Name of the WorkloadPriorityClass.")] = None
    groups_formed: Annotated[int, Field(description="How many groups there were so far; no name is given twice.")] = 0
    groups: Annotated[
        list[PodGroupStatus],
        Field(
            description="Those there are now, lowest workers first: the smallest valid world, then what each larger "
            "one needs more. None while the job is suspended or over."
        ),
    ] = []
