"""What a classifier's logits say."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scores:
    """Of n samples."""

    labels: npt.NDArray[np.int64]
    """[n]: the likeliest class."""
    confidence: Floats
    """[n]: its probability."""
    energy: Floats
    """[n]: -logsumexp(logits); low for inputs like those of the training (Liu et al., 2020, arXiv 2010.03759)."""
    probabilities: Floats
    """[n, classes]."""

    def rows(self, first: int, end: int) -> "Scores":
        """Of samples `first` … `end` - 1, in memory of their own: one of them kept does not keep the batch."""
        return Scores(
            self.labels[first:end].copy(),
            self.confidence[first:end].copy(),
            self.energy[first:end].copy(),
            self.probabilities[first:end].copy(),
        )

    @property
    def nbytes(self) -> int:
        return self.labels.nbytes + self.confidence.nbytes + self.energy.nbytes + self.probabilities.nbytes


def scores_of(logits: Floats) -> Scores:
    """Of finite logits [n, classes]."""
    labels = logits.argmax(axis=1)
    greatest = logits.max(axis=1, keepdims=True)
    exponentials = np.exp(logits - greatest)
    total = exponentials.sum(axis=1, keepdims=True)
    probabilities = exponentials / total
    energy = -(greatest + np.log(total))[:, 0]
    return Scores(labels, 1.0 / total[:, 0], energy, probabilities)
