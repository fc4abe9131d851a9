"""The PodGroup of a job that asks for one: whether there can be any, and when it is written."""

from capstan_operator.api.gang import GangStatus
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.build.gang import POD_GROUP_APIS, build_gang, gang_name
from capstan_operator.decide.situation import ENDED, Situation
from capstan_operator.decide.types import Manifest


def gang_problem(situation: Situation) -> str | None:
    """Why no pod may be made, in one line: the gang that is asked for cannot be; None: nothing is in the way."""
    gang = situation.blueprint.spec.workers.gang
    if gang is None or gang.kind in situation.observed.gang_schedulers:
        return None
    return (
        f"spec.workers.gang.{gang.kind}: needs PodGroups of {POD_GROUP_APIS[gang.kind]}, which this cluster does not "
        "serve; install the scheduler, or remove gang"
    )


def is_without_pods(situation: Situation) -> bool:
    """Nothing runs that could go on without the gang's PodGroup."""
    return all(pod.phase in ENDED for pod in situation.observed.pods)


def plan_gang(situation: Situation, *, is_making_pods: bool) -> tuple[Manifest, ...]:
    """The PodGroup, if it is to be another than it was. Whenever pods are made it is made sure of: somebody may have
    deleted it, and nobody would place them."""
    gang = _gang(situation)
    if gang is None or not (is_making_pods or gang != situation.status.gang):
        return ()
    return (build_gang(situation.observed.job, gang),)


def with_gang(situation: Situation) -> TrainingJobStatus:
    """`situation.status` with the PodGroup as `plan_gang` leaves it. One that is not asked for any more goes with the
    job: pods that were made with it name it."""
    gang = _gang(situation)
    return situation.status if gang is None else situation.status.model_copy(update={"gang": gang})


def _gang(situation: Situation) -> GangStatus | None:
    gang = situation.blueprint.spec.workers.gang
    if gang is None or gang_problem(situation) is not None:
        return None
    return GangStatus(
        name=gang_name(situation.observed.job),
        scheduler=gang.kind,
        queue=gang.volcano.queue if gang.volcano else None,
        min_member=situation.worlds[0],
    )
