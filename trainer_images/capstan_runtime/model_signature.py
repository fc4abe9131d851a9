"""A model as its users see it, and as its trainer and its server build it: the same facts on the way out and in."""

from capstan_runtime.contract.run_config import RunConfig
from capstan_runtime.contract.signature import Signature
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.errors import ConfigError


def signature_of(run: RunConfig, data: DataSpec) -> Signature | None:
    """Of what `run` trains on `data`; every checkpoint of the run carries it. None: only the user's own code knows the
    model, and no server has that."""
    if run.model.custom is not None:
        return None
    return Signature(
        model=run.model,
        kind=data.kind,
        input_shape=data.input_shape,
        outputs=data.outputs,
        condition=data.condition or None,
        low_rank=rank_of(run),
        normalize=run.augmentation.normalize if run.augmentation is not None else None,
        text=run.data.text is not None,
    )


def rank_of(run: RunConfig) -> int | None:
    """The rank of its model's matrices; None: they are whole."""
    low_rank = run.compression.low_rank if run.compression is not None else None
    return low_rank.rank if low_rank is not None else None


def data_spec_of(signature: Signature) -> DataSpec:
    """The facts that decide the shapes of the model's parameters. Which data it was, a signature does not say: the
    fingerprint is empty."""
    return DataSpec(
        signature.kind, signature.input_shape, signature.outputs, fingerprint="", condition=signature.condition or 0
    )


def require_servable(signature: Signature) -> None:
    """Raises ConfigError for a model that takes more than requests have."""
    if signature.condition is not None:
        raise ConfigError(
            f"model: takes {signature.condition} numbers of data.arrays.condition with each sample, and requests have "
            "none; serve a model without conditionalScaling and adaptiveNorm"
        )
