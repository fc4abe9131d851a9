"""Small models in numpy that keep the promises of `predictor`, and can be told to break them."""

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from capstan_runtime.contract.models import Cnn, Mlp, Model, Transformer
from capstan_runtime.contract.serving import Guards, ServeConfig, ServedModel
from capstan_runtime.contract.signature import Signature

Floats = npt.NDArray[np.float32]

ROOT = "blake3:" + "5e" * 32


def serve_config(guards: Guards | None = None, protocols: Sequence[str] = ("OpenInference", "KServeV1")) -> ServeConfig:
    return ServeConfig(
        service="default/digits",
        model=ServedModel(name="digits", version="digits-00001", run="run-uid", root=ROOT),
        runtime="torch",
        protocols=tuple(protocols),
        guards=guards or Guards(),
    )


class NumpyClassifier:
    """A perceptron with fixed random weights. `on_call` sees every batch before it is computed."""

    def __init__(self, input_shape: tuple[int, ...] = (4,), classes: int = 3, hidden: int = 8) -> None:
        random = np.random.default_rng(7)
        features = int(np.prod(input_shape))
        is_image = len(input_shape) == 3
        model = Model(cnn=Cnn(channels=[8])) if is_image else Model(mlp=Mlp(hidden=[hidden]))
        self.signature = Signature(
            model=model, kind="image" if is_image else "vector", input_shape=input_shape, outputs=classes
        )
        self._first = random.standard_normal((features, hidden), dtype=np.float32)
        self._second = random.standard_normal((hidden, classes), dtype=np.float32)
        self.warmed: list[int] = []
        self.batches: list[int] = []
        self.on_call: Callable[[Floats], None] = lambda inputs: None
        self._is_busy = threading.Lock()

    def warm(self, batch_sizes: Sequence[int]) -> None:
        self.warmed = list(batch_sizes)

    def logits(self, inputs: Floats) -> Floats:
        assert self._is_busy.acquire(blocking=False), "one call at a time"
        try:
            assert inputs.dtype == np.float32
            assert inputs.shape[1:] == self.signature.input_shape
            assert len(inputs) <= max(self.warmed), "larger than any batch that was warmed"
            self.batches.append(len(inputs))
            self.on_call(inputs)
            return self.expected(inputs)
        finally:
            self._is_busy.release()

    def expected(self, inputs: Floats) -> Floats:
        with np.errstate(over="ignore", invalid="ignore"):
            hidden = np.maximum(inputs.reshape(len(inputs), -1) @ self._first, 0)
            return np.asarray(hidden @ self._second, np.float32)


class WrongClassifier(NumpyClassifier):
    """Names another class where the first feature is above zero."""

    def expected(self, inputs: Floats) -> Floats:
        logits = super().expected(inputs)
        return np.where(inputs[:, :1] > 0, np.roll(logits, 1, axis=1), logits)


class NumpyDecoder:
    """The next token is likeliest the one after the last, of those in the sequence so far; slots are checked."""

    def __init__(self, slots: int = 2, context: int = 64, vocabulary: int = 256, *, text: bool = True) -> None:
        self.signature = Signature(
            model=Model(transformer=Transformer(layers=1, dim=8, heads=1)),
            kind="tokens",
            input_shape=(context,),
            outputs=vocabulary,
            text=text,
        )
        self.slots = slots
        self.context = context
        self.sequences: dict[int, list[int]] = {}
        self.steps: list[int] = []
        self.is_warm = False
        self.on_call: Callable[[list[int]], None] = lambda tokens: None
        self.step_seconds = 0.0

    def warm(self) -> None:
        self.is_warm = True

    def prefill(self, slot: int, prompt: npt.NDArray[np.int32]) -> Floats:
        assert self.is_warm
        assert 0 <= slot < self.slots
        assert slot not in self.sequences, "the slot holds a sequence"
        assert 1 <= len(prompt) < self.context
        self.on_call(prompt.tolist())
        self.sequences[slot] = prompt.tolist()
        return self._logits(self.sequences[slot])

    def step(self, slots: Sequence[int], tokens: npt.NDArray[np.int32]) -> Floats:
        assert len(set(slots)) == len(slots) == len(tokens)
        time.sleep(self.step_seconds)
        self.steps.append(len(slots))
        for slot, token in zip(slots, tokens.tolist(), strict=True):
            self.sequences[slot].append(token)
            assert len(self.sequences[slot]) < self.context
        self.on_call(tokens.tolist())
        return np.stack([self._logits(self.sequences[slot]) for slot in slots])

    def release(self, slot: int) -> None:
        self.sequences.pop(slot, None)

    def _logits(self, sequence: list[int]) -> Floats:
        """Depends on the whole sequence: a slot with another's tokens would show."""
        vocabulary = self.signature.outputs
        logits = np.zeros(vocabulary, np.float32)
        logits[(sequence[-1] + 1) % vocabulary] = 4.0
        logits[sum(sequence) % vocabulary] += 1.0
        return logits
