"""Which weights are pruned, and how many of them when: the same in every framework, computed here.

Nothing is carried from step to step: the weights that are 0 are the mask. What is done with it to tensors is in
`flax_trainer/optimizers/pruning.py` and `deepspeed_trainer/optimizers/pruning.py`.
"""

from capstan_runtime.contract.compression import Compression, Magnitude, Nm, Prune
from capstan_runtime.contract.training import Training
from capstan_runtime.errors import ConfigError
from capstan_runtime.model_spec import Constant, ParameterSpec, output_layer

_EMBEDDING = "embed.weight"
_ROUTER = ".router.weight"


def is_pruned(spec: ParameterSpec) -> bool:
    """Whether weights of this parameter may be set to 0: it is a matrix [outputs, inputs] or a kernel [outputs, inputs,
    height, width], or several that are one parameter, each of which is pruned by itself.

    Not the first nor the last of a decoder, where a row is a token; not a router, where a row is an expert; and not one
    that starts as a constant: its zeros are where it has yet to go, and none of equals is the smallest.
    """
    if not spec.decays or len(spec.shape) - spec.matrix_dims not in (2, 4) or isinstance(spec.init, Constant):
        return False
    return not (spec.name == _EMBEDDING or spec.name.endswith(_ROUTER) or output_layer([spec.name]))


def require_last_cut(compression: Compression | None, training: Training, steps: int) -> None:
    """Raises ConfigError if a run of `steps` steps, which is what `training` comes to, ends before all is pruned."""
    if compression is None or compression.prune is None or compression.prune.value.last_cut <= steps:
        return
    said = f"steps {training.steps}" if training.epochs is None else f"epochs {training.epochs}, {steps} steps"
    raise ConfigError(
        f"spec.compression.prune: makes its last cut at step {compression.prune.value.last_cut}, after the last of "
        f"spec.training.{said}; lower it"
    )


def pruned_share(prune: Prune, step: int) -> float:
    """Of the weights that are pruned, the share that is 0 after optimizer step number `step` (from 1), rounded down to
    whole weights; where groups do not divide a dimension, of N:M less."""
    match prune.value:
        case Magnitude() as config:
            # Between two cuts it is that of the one before.
            cut = config.begin_step + (step - config.begin_step) // config.every_steps * config.every_steps
            way = (cut - config.begin_step) / (config.end_step - config.begin_step)
            return config.sparsity * (1.0 - (1.0 - min(1.0, max(0.0, way))) ** 3)
        case Nm() as config:
            return 1.0 - config.keep / config.of if step > config.begin_step else 0.0
        case other:  # pragma: no cover - a new kind of pruning
            raise TypeError(f"nobody has said how much {type(other).__name__} prunes")


def pruning_numbers(prune: Prune | None, step: int) -> dict[str, float]:
    """The numbers of optimizer step number `step` (from 1), by name; every step of a run has the same names.

    `keeps_zeros`: what was 0 before the update stays 0: from the step after the first cut on, before which zeros are
    nobody's doing. `cuts`: weights are set to 0 after it, until `pruned_share` of them are. A cut is made again at
    every interval after the last, which changes nothing, unless an update was dropped and its cut with it.
    """
    if prune is None:
        return {}
    config = prune.value
    begun = step - config.begin_step
    every = config.every_steps if isinstance(config, Magnitude) else 1
    return {
        "keeps_zeros": float(begun > every),
        "cuts": float(begun > 0 and begun % every == 0),
        "pruned_share": pruned_share(prune, step),
    }
