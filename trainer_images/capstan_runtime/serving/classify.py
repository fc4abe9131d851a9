"""Samples of several requests computed in one call; the requests that are at fault fail alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from capstan_runtime.serving.predictor import Classifier
from capstan_runtime.serving.refusal import Outcome, Refusal
from capstan_runtime.serving.scores import Floats, Scores, scores_of

_WITHOUT_BATCHING = 32
"""Most samples of one call where requests are not batched: a request may bring several."""


class NotFinite(ArithmeticError):
    """The model's answer is NaN or infinite."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """One entry for each request, in their order."""

    answers: list[Scores | Refusal]
    has_model_failed: bool
    error: Exception | None
    """What went wrong first; None: nothing."""


class Scorer:
    """Calls the model, on the worker's thread."""

    def __init__(self, model: Classifier, most_samples: int) -> None:
        """`most_samples` is the greatest batch that the model is warmed for."""
        self._model = model
        self.most_samples = most_samples
        self._blank = np.zeros((1, *model.signature.input_shape), np.float32)

    def warm(self) -> None:
        self._model.warm(batch_sizes(self.most_samples))
        self.probe()

    def probe(self) -> None:
        """Raises whatever keeps the model from answering for a blank sample."""
        self._score(self._blank)

    def score_requests(self, requests: Sequence[Floats]) -> BatchResult:
        """When the call for all of them fails, a blank sample tells whose fault it is: if the model cannot even answer
        that, all fail with 500; else each request is computed alone, and those that fail again get 422."""
        try:
            scores = self._score(requests[0] if len(requests) == 1 else np.concatenate(requests))
        except Exception as error:
            return self._one_by_one(requests, error)
        if len(requests) == 1:
            return BatchResult([scores], False, None)
        answers: list[Scores | Refusal] = []
        first = 0
        for inputs in requests:
            answers.append(scores.rows(first, first + len(inputs)))
            first += len(inputs)
        return BatchResult(answers, False, None)

    def _one_by_one(self, requests: Sequence[Floats], error: Exception) -> BatchResult:
        try:
            self.probe()
        except Exception:
            failed = Refusal(500, "the model failed; the server's log says why", outcome=Outcome.FAILED)
            return BatchResult([failed] * len(requests), True, error)
        return BatchResult([self._alone(inputs) for inputs in requests], False, error)

    def _alone(self, inputs: Floats) -> Scores | Refusal:
        try:
            return self._score(inputs)
        except Exception as error:
            return Refusal(422, f"the model has no answer for this input ({type(error).__name__}), but for others")

    def _score(self, inputs: Floats) -> Scores:
        most = self.most_samples
        if len(inputs) <= most:
            logits = self._model.logits(inputs)
        else:
            logits = np.concatenate([self._model.logits(inputs[at : at + most]) for at in range(0, len(inputs), most)])
        if not np.isfinite(logits).all():
            raise NotFinite("a logit is NaN or infinite")
        return scores_of(logits)


def batch_sizes(most: int) -> list[int]:
    """Powers of two below `most`, and `most`: padding to the next of them at most doubles the work."""
    return [*(1 << power for power in range((most - 1).bit_length())), most]


def greatest_batch(max_batch_size: int | None, max_samples: int) -> int:
    """Samples of the largest call; `max_batch_size` None: requests are not batched."""
    return min(max_samples, _WITHOUT_BATCHING) if max_batch_size is None else max_batch_size
