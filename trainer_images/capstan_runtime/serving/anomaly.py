"""Inputs that are unlike those the model was trained on, by what it makes of them."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from capstan_runtime.contract.serving import Anomaly
from capstan_runtime.serving.refusal import Refusal
from capstan_runtime.serving.scores import Scores


def anomalous(config: Anomaly, scores: Scores, on_anomalous: Callable[[int], None]) -> npt.NDArray[np.bool_]:
    """[n]: which samples are; `on_anomalous` hears how many, if there are any. Raises Refusal 422 if one is and the
    action is to reject."""
    flags = np.zeros(len(scores.labels), np.bool_)
    if config.energy_above is not None:
        flags |= scores.energy > config.energy_above
    if config.confidence_below is not None:
        flags |= scores.confidence < config.confidence_below
    if not flags.any():
        return flags
    on_anomalous(int(flags.sum()))
    if config.action == "Reject":
        sample = int(flags.argmax())
        raise Refusal(
            422,
            f"sample {sample} is unlike what the model was trained on (confidence {scores.confidence[sample]:.4f}, "
            f"energy {scores.energy[sample]:.4f}); check that it is prepared as in training",
        )
    return flags
