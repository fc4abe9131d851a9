"""The model that a workload measures: made on the spot with random weights, or a checkpoint, verified; and how much
memory it must have."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.contract.models import Cnn, Mlp, Model, Transformer
from capstan_runtime.contract.serving import ServedModel
from capstan_runtime.contract.signature import Signature
from capstan_runtime.contract.workloads import CheckpointModel, Input, MeasuredModel
from capstan_runtime.decoder_spec import feed_forward_rows
from capstan_runtime.engine import Array, TensorSource
from capstan_runtime.errors import ConfigError
from capstan_runtime.low_rank import table_of
from capstan_runtime.model_spec import feed_forward_width, initial_parameter, kv_heads, tensor_name
from capstan_runtime.serving.load import find_checkpoint

_FP32_BYTES = 4
_GPU_CONTROL = Path("/dev/nvidiactl")
_MEMORY_INFO = Path("/proc/meminfo")
_LIMITS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Of either version of control groups: its folder, and where it says a container's limit, what is used of it, and how
much of that are files that were read a while ago."""


class RandomTensors:
    """A `TensorSource` whose parameters have their first values, those of a training run of that seed."""

    def __init__(self, signature: Signature, seed: int) -> None:
        """Raises ConfigError if the model cannot take such input."""
        table = table_of(signature)
        self._specs = {tensor_name(spec.name): spec for spec in table}
        self._seed = seed

    def names(self) -> Iterable[str]:
        return self._specs

    def shape(self, name: str) -> tuple[int, ...]:
        return self._specs[name].shape

    def read(self, name: str) -> Array:
        return initial_parameter(self._specs[name], self._seed)

    def read_range(self, name: str, start: int, stop: int) -> Array:
        return self.read(name).reshape(-1)[start:stop]


def fresh_signature(model: Model, data: Input) -> Signature:
    """What a checkpoint of `model`, trained on such `data`, would say of itself."""
    if data.image is not None:
        shape = (data.image.height, data.image.width, data.image.channels)
        return Signature(model=model, kind="image", input_shape=shape, outputs=data.image.classes)
    if data.vector is not None:
        return Signature(model=model, kind="vector", input_shape=(data.vector.features,), outputs=data.vector.classes)
    tokens = data.tokens
    assert tokens is not None
    return Signature(model=model, kind="tokens", input_shape=(tokens.sequence_length,), outputs=tokens.vocabulary)


def open_model(
    model: MeasuredModel, store: Store, environ: Mapping[str, str], seed: int, field: str
) -> tuple[Signature, TensorSource]:
    """What the model takes and gives, and where its weights come from; every byte of a checkpoint is verified as it is
    read. `store` is that of the namespace in results.store, `field` where the spec names the model.

    Raises ConfigError for a checkpoint that is not there or does not say what it is, CorruptCheckpoint, and
    StoreUnavailable.
    """
    if model.fresh is not None:
        signature = fresh_signature(model.fresh.architecture, model.fresh.input)
        return signature, RandomTensors(signature, seed)
    assert model.checkpoint is not None
    return _open_checkpoint(model.checkpoint, store, environ, f"{field}.checkpoint")


def _open_checkpoint(
    model: CheckpointModel, store: Store, environ: Mapping[str, str], field: str
) -> tuple[Signature, TensorSource]:
    namespace, job, uid = model.run.split("/")
    run = open_store(f"{store.place}/{job}/{uid}", environ)
    if not run.children():
        raise ConfigError(
            f"{field}.run: {model.run} has no checkpoint in {run.place}; name a run of namespace {namespace} in "
            "results.store, as the TrainingJob's status.checkpoint does"
        )
    served = ServedModel(name=job, version=job, run=uid, root=model.digest)
    try:
        opened = find_checkpoint(served, run)
    except ConfigError as error:
        raise ConfigError(f"{field}.digest: {str(error).removeprefix('model.root: ')}") from error
    signature = opened.manifest.signature
    if signature is None:
        raise ConfigError(
            f"{field}.digest: {model.digest} does not say what model it is: it is of the user's own code, which only "
            "that can run, or an older version of Capstan saved it, whose TrainingJob can save one more with this "
            "version"
        )
    return signature, opened.tensors()


def parameter_bytes(signature: Signature) -> int:
    """Of all weights, in fp32."""
    return _FP32_BYTES * sum(spec.size for spec in table_of(signature))


def input_bytes(signature: Signature, batch: int) -> int:
    return _FP32_BYTES * batch * math.prod(signature.input_shape)


def output_bytes(signature: Signature, batch: int) -> int:
    """Of a forward pass: scores of each class, or of each token at each place."""
    places = signature.input_shape[0] if signature.kind == "tokens" else 1
    return _FP32_BYTES * batch * places * signature.outputs


def forward_bytes(signature: Signature, batch: int) -> int:
    """What a forward pass must hold at the least: weights, what goes in and out, and both sides of its widest layer."""
    match signature.model.value:
        case Mlp() as mlp:
            widest = max(mlp.hidden)
        case Cnn() as cnn:
            pixels = math.prod(signature.input_shape[:2])
            widest = max(pixels // 4**block * channels for block, channels in enumerate(cnn.channels))
        case Transformer() as transformer:
            widest = feed_forward_rows(transformer, signature.input_shape[0]) * 2 * feed_forward_width(transformer)
    layer = 2 * _FP32_BYTES * batch * widest
    return parameter_bytes(signature) + input_bytes(signature, batch) + output_bytes(signature, batch) + layer


def decoder_bytes(signature: Signature, slots: int) -> int:
    """What a decoder must hold at the least: weights, and keys and values of every slot."""
    config = signature.model.value
    assert isinstance(config, Transformer)
    width = kv_heads(config) * (config.dim // config.heads)
    caches = 2 * _FP32_BYTES * slots * config.layers * signature.input_shape[0] * width
    return parameter_bytes(signature) + caches


def require_memory(needed: int, what: str, fix: str) -> None:
    """Raises ConfigError when this process cannot have `needed` bytes: it would be killed, and no one would say why.
    `what` begins with field and value."""
    available = available_bytes()
    if available is not None and needed > available:
        raise ConfigError(f"{what} needs at least {_shown(needed)}, and {_shown(available)} are free here; {fix}")


def sees_gpu(environ: Mapping[str, str]) -> bool:
    """Whether this process has an NVIDIA GPU that nobody has hidden from it."""
    return _GPU_CONTROL.exists() and environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")


def available_bytes() -> int | None:
    """Memory of the host that this process may still take; None: nobody says."""
    found = [left for left in (_left_on_machine(), *(left_in(*group) for group in _LIMITS)) if left is not None]
    return min(found, default=None)


def _left_on_machine() -> int | None:
    try:
        lines = _MEMORY_INFO.read_text().splitlines()
    except OSError:
        return None
    kibibytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kibibytes[0] * 1024 if kibibytes else None


def left_in(folder: Path, limit: str, used: str, reclaimable: str) -> int | None:
    """Of a container's memory; None: there is no such control group, or no limit. Files that were read are given up
    when memory is needed, so they count as free, as for the kubelet."""
    try:
        taken = int((folder / used).read_text()) - _stat((folder / "memory.stat").read_text(), reclaimable)
        return max(0, int((folder / limit).read_text()) - taken)
    except (OSError, ValueError):  # "max" is no number
        return None


def _stat(text: str, name: str) -> int:
    return next((int(value) for key, value in map(str.split, text.splitlines()) if key == name), 0)


def _shown(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
