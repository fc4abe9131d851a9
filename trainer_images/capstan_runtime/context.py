"""What an attempt is about: the run, this rank's place in it and, for an engine, the facts of the data."""

from collections.abc import Mapping
from dataclasses import dataclass

from capstan_runtime.contract.run_config import Deadlines, JobConfig, Membership, RunConfig
from capstan_runtime.data.plan import micro_steps_of_slice
from capstan_runtime.data.spec import DataSpec


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
    def micro_steps(self) -> int:
        """M: of this rank in one optimizer step. V / W virtual ranks, each in one micro-step or, for want of memory, in
        several (`Membership.micro_splits`)."""
        assert self.run.training.virtual_ranks is not None
        return self.run.training.virtual_ranks // self.membership.world * self._micro_steps_of_slice

    @property
    def samples_per_micro_step(self) -> int:
        """b: B / V samples of one virtual rank, or an equal part of them. Raises ConfigError if there are too few."""
        return self._samples_of_slice // self._micro_steps_of_slice

    @property
    def _samples_of_slice(self) -> int:
        assert self.run.training.virtual_ranks is not None
        return self.run.training.global_batch_size // self.run.training.virtual_ranks

    @property
    def _micro_steps_of_slice(self) -> int:
        return micro_steps_of_slice(self._samples_of_slice, self.membership.micro_splits)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainContext(JobContext):
    """All an engine may know before it joins the world."""

    run: RunConfig
    data: DataSpec
    """Decides the model's input and output sizes."""

    @property
    def data_fingerprint(self) -> str:
        return self.data.fingerprint
