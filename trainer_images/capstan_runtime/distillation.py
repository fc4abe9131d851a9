"""Whom a run learns from: found, and known to fit, before the engine is made."""

from capstan_runtime.checkpoint.layout import TEACHER
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.context import TrainContext
from capstan_runtime.contract.augmentation import Normalize
from capstan_runtime.contract.signature import Signature
from capstan_runtime.engine import Trained
from capstan_runtime.errors import ConfigError
from capstan_runtime.trained import find_trained
from capstan_runtime.voice import Voice

_FIELD = "spec.compression.distill.teacher"


def find_teacher(context: TrainContext, store: Store, voice: Voice) -> Trained | None:
    """The run's teacher, whose tensors nobody has read yet; None: it has none. `store`: the run's own. Raises as
    `find_trained`, and ConfigError for one that cannot answer what the run asks."""
    compression = context.run.compression
    if compression is None or compression.distill is None:
        return None
    found = find_trained(compression.distill.teacher, context, store, voice, TEACHER, _FIELD)
    require_teacher_fits(found.signature, context)
    return found


def require_teacher_fits(teacher: Signature, context: TrainContext) -> None:
    """Raises ConfigError unless the teacher takes what the run's model takes, and gives outputs of the same meaning, as
    far as anybody can tell."""
    run, data = context.run, context.data
    normalize = run.augmentation.normalize if run.augmentation is not None else None
    for what, its, ours, fix in (
        ("kind of data", teacher.kind, data.kind, "choose one of the same"),
        ("outputs", teacher.outputs, data.outputs, "choose one with as many, of the same classes or vocabulary"),
        ("text", teacher.text, run.data.text is not None, "choose one of the same kind of tokens"),
        (
            "augmentation.normalize",
            _shown(teacher.normalize),
            _shown(normalize),
            "set spec.augmentation.normalize to it",
        ),
    ):
        if its != ours:
            raise ConfigError(f"{_FIELD}: has {what} {its}, and this run {ours}; {fix}")
    if teacher.condition is not None and teacher.condition != data.condition:
        raise ConfigError(
            f"{_FIELD}: takes {teacher.condition} numbers of data.arrays.condition, and the data has {data.condition}; "
            "choose one that takes as many, or none"
        )
    if not _takes_shape(teacher, data.input_shape):
        raise ConfigError(
            f"{_FIELD}: was trained on {_size(teacher.input_shape)}, and this run on {_size(data.input_shape)}; choose "
            "one of the same size" + (" or longer" if data.kind == "tokens" else "")
        )
    if teacher.model.mlp is not None and run.augmentation is not None and run.augmentation.multi_scale is not None:
        raise ConfigError(
            f"{_FIELD}: is an mlp, which takes pictures of one size, and spec.augmentation.multiScale changes it; "
            "choose a cnn, or remove multiScale"
        )


def _takes_shape(teacher: Signature, ours: tuple[int, ...]) -> bool:
    """A cnn takes pictures of every size, and a decoder has learnt to go on after no more tokens than it was shown."""
    its = teacher.input_shape
    if teacher.kind == "tokens":
        return its[0] >= ours[0]
    return its[-1] == ours[-1] if teacher.model.cnn is not None else its == ours


def _shown(normalize: Normalize | None) -> str:
    return "none" if normalize is None else f"mean {normalize.mean} and std {normalize.std}"


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
