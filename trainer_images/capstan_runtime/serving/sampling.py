"""How the next token is drawn."""

import numpy as np
import numpy.typing as npt

from capstan_runtime.serving.predictor import Sampling
from capstan_runtime.serving.scores import Floats

Probabilities = npt.NDArray[np.float64]


class Sampler:
    """Of one sequence: the same seed, prompt and parameters give the same tokens, whatever else is decoded."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))

    def draw(self, logits: Floats) -> int:
        """A token, by its logits [vocabulary]."""
        if self._sampling.temperature == 0.0:
            return int(logits.argmax())
        probabilities = _softmax(logits.astype(np.float64) / self._sampling.temperature)
        if self._sampling.top_p < 1.0:
            probabilities = _nucleus(probabilities, self._sampling.top_p)
        cumulative = probabilities.cumsum()
        # By the sum, which is 1 only nearly: the last token must not be drawn for lack of another.
        return int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))


def log_probabilities(logits: Floats) -> Probabilities:
    """[vocabulary], of the model itself: before temperature and top_p."""
    shifted = logits.astype(np.float64) - logits.max()
    result: Probabilities = shifted - np.log(np.exp(shifted).sum())
    return result


def _softmax(logits: Probabilities) -> Probabilities:
    exponentials = np.exp(logits - logits.max())
    result: Probabilities = exponentials / exponentials.sum()
    return result


def _nucleus(probabilities: Probabilities, top_p: float) -> Probabilities:
    """The likeliest tokens whose probabilities add up to `top_p`, at least one; the others are 0 (Holtzman et al.,
    2019, 1904.09751)."""
    order = probabilities.argsort()[::-1]
    kept = int(np.searchsorted(probabilities[order].cumsum(), top_p)) + 1
    nucleus = np.zeros_like(probabilities)
    nucleus[order[:kept]] = probabilities[order[:kept]]
    return nucleus
