"""What of a model's components goes together with what else of a run."""

from typing import Any

from capstan_runtime.contract.models import CEL_BATCH_STATISTICS

_CEL_RANKS = "(has(self.training.virtualRanks) ? self.training.virtualRanks : self.workers.max)"
_TOO_FEW = "is fewer than 2 samples for norm batch or mix to take statistics of; choose a larger batch or fewer ranks"

MODEL_RULES: tuple[tuple[str, str], ...] = (
    (
        f"!{CEL_BATCH_STATISTICS} || {_CEL_RANKS} < 1 || self.training.globalBatchSize / {_CEL_RANKS} >= 2",
        "'training: globalBatchSize ' + string(self.training.globalBatchSize) + ' over virtualRanks '"
        f" + string({_CEL_RANKS}) + ' {_TOO_FEW}'",
    ),
)
"""The twins of `require_model_fits` in CEL."""


def require_model_fits(spec: Any) -> None:
    """Raises ValueError when the model of `spec`, a Run, does not go together with the rest."""
    batch, ranks = spec.training.global_batch_size, spec.virtual_ranks
    if spec.model.batch_statistics is not None and batch // ranks < 2:
        raise ValueError(f"training: globalBatchSize {batch} over virtualRanks {ranks} {_TOO_FEW}")
