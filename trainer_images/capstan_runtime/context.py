"""What an attempt is about: the run, this rank's place in it and, for an engine, the facts of the data."""

from collections.abc import Mapping
from dataclasses import dataclass

from capstan_runtime.contract import env
from capstan_runtime.contract.run_config import Deadlines, JobConfig, Membership, RunConfig
from capstan_runtime.data.plan import micro_steps_of_slice
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.engine import Trained
from capstan_runtime.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class JobContext:
    """This rank's place in one attempt of a job, whatever trains in it."""

    run: JobConfig
    membership: Membership
    steps: int
    """Optimizer steps of the whole run, epochs already turned into steps."""
    environ: Mapping[str, str]

    @property
    def data_fingerprint(self) -> str:
        """See `DataSpec.fingerprint`; empty where nobody but a user's program knows its data."""
        return ""

    @property
    def deadlines(self) -> Deadlines:
        return self.run.deadlines

    @property
    def device_memory(self) -> int | None:
        """Bytes that the run may take of each device; None: what it says that it has. Raises ConfigError."""
        told = self.environ.get(env.DEVICE_MEMORY)
        if told is not None and not told.isdecimal():
            raise ConfigError(f"{env.DEVICE_MEMORY}: {told!r} is no number of bytes; give one, such as 80000000000")
        return None if told is None else int(told)

    @property
    def micro_steps(self) -> int:
        """M: of this rank in one optimizer step. V / data_world virtual ranks, each in one micro-step or, for want of
        memory, in several (`Membership.micro_splits`)."""
        assert self.run.training.virtual_ranks is not None
        return self.run.training.virtual_ranks // self.data_world * self._micro_steps_of_slice

    @property
    def workers_per_replica(self) -> int:
        """How many consecutive ranks hold one replica of the model together, and so compute the same samples."""
        return 1

    @property
    def data_rank(self) -> int:
        """Which of `data_world` even shares of a batch is this rank's."""
        return self.membership.rank // self.workers_per_replica

    @property
    def data_world(self) -> int:
        return self.membership.world // self.workers_per_replica

    @property
    def samples_per_micro_step(self) -> int:
        """b: B / V samples of one virtual rank, or an equal part of them. Raises ConfigError if there are too few."""
        return self.samples_of_slice // self._micro_steps_of_slice

    @property
    def samples_of_slice(self) -> int:
        """B / V: of one virtual rank in one step."""
        assert self.run.training.virtual_ranks is not None
        return self.run.training.global_batch_size // self.run.training.virtual_ranks

    @property
    def _micro_steps_of_slice(self) -> int:
        return micro_steps_of_slice(self.samples_of_slice, self.membership.micro_splits)


def require_whole_replicas(run: RunConfig, membership: Membership) -> None:
    """Raises ConfigError if the world is no whole number of replicas of the model."""
    if membership.world % run.workers_per_replica:
        raise ConfigError(
            f"spec.workers: {membership.world} workers are no whole replicas, each of which spec.parallelism spreads "
            f"over {run.workers_per_replica}; choose a multiple"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainContext(JobContext):
    """All an engine may know before it joins the world."""

    run: RunConfig
    data: DataSpec
    """Decides the model's input and output sizes."""
    teacher: Trained | None = None
    """Whom the model learns from; None: nobody."""

    @property
    def workers_per_replica(self) -> int:
        return self.run.workers_per_replica

    @property
    def data_fingerprint(self) -> str:
        return self.data.fingerprint

    def require_whole_slices(self, devices: int) -> None:
        """Raises ConfigError if the model takes statistics over a virtual rank's samples and these are not computed all
        together: for want of memory, or because several `devices` of this worker share them."""
        field = self.run.model.batch_statistics
        if field is None:
            return
        if self._micro_steps_of_slice > 1:
            raise ConfigError(
                f"spec.model.{field}: a virtual rank's {self.samples_of_slice} samples do not fit into the device's "
                "memory together, and the statistics are over all of them; in a new job raise training.virtualRanks, "
                "or choose norm group or layer"
            )
        if devices > 1:
            raise ConfigError(
                f"spec.model.{field}: {devices} devices per worker would share a virtual rank's samples, and its "
                "statistics are over all of them; set workers.gpus to 1, or choose norm group or layer"
            )
