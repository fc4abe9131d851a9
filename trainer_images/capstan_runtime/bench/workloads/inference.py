"""Workload inference: a model called directly, as a server would call it but without one.

A call is what serving makes of it (`serving.predictor`): arrays of the host in, arrays of the host out, so on a GPU the
way there and back is part of it.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import cast

import numpy as np
import numpy.typing as npt

from capstan_runtime.bench.measured import Measured, can_tell, median_point, point, time_calls
from capstan_runtime.bench.models import decoder_bytes, forward_bytes, open_model, require_memory, sees_gpu
from capstan_runtime.bench.threads import limit_threads
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.contract.benchmark import Point, TrialTask
from capstan_runtime.contract.signature import Signature
from capstan_runtime.contract.workloads import Inference
from capstan_runtime.engine import TensorSource
from capstan_runtime.errors import ConfigError, GpuOutOfMemory
from capstan_runtime.serving.load import Build, builder
from capstan_runtime.serving.predictor import Classifier, Decoder

_FIELD = "workload.inference"


def run(task: TrialTask, store: Store, environ: Mapping[str, str]) -> Measured:
    """The points of every batch size, measured in an order that the trial's seed shuffles.

    Of each: samples_per_second (calls that were counted over the time they took), latency_p50_seconds with the raw
    latencies, latency_p99_seconds of 100 calls or more; of a decoder also tokens_per_second,
    time_to_first_token_seconds and time_per_output_token_seconds. Compiling and the first `warmupSeconds` are left out.

    Raises ConfigError for what cannot be measured, CorruptCheckpoint, StoreUnavailable.
    """
    work = task.work.inference
    assert work is not None
    limit_threads(environ)
    signature, source = open_model(work.model, store, environ, task.seed, f"{_FIELD}.model")
    build = builder(work.runtime)
    sizes = np.random.default_rng(task.seed).permutation(work.batch_sizes).tolist()
    measure = _measure_decoder if signature.kind == "tokens" else _measure_classifier
    measured = list(measure(work, signature, source, build, sizes, task.seed))
    measured.sort(key=lambda one: one.batch_size)
    few = [str(one.batch_size) for one in measured if not can_tell(0.99, len(one.latencies))]
    notes = (
        [f"fewer than 100 calls at batch size {', '.join(few)}: too few for p99; raise {_FIELD}.seconds"] if few else []
    )
    return Measured(points=[each for one in measured for each in one.points()], notes=notes)


@dataclass(frozen=True, slots=True)
class _OfBatchSize:
    """What was measured at one batch size."""

    batch_size: int
    latencies: Sequence[float]
    """Seconds of each counted call."""
    new_tokens: int | None = None
    """Per sample; None: a classifier."""
    to_first: Sequence[float] = field(default=())
    """Seconds of each counted call until every sequence of the batch had its first token."""

    def points(self) -> Iterator[Point]:
        labels = {"batchSize": str(self.batch_size)}
        rate = self.batch_size * len(self.latencies) / sum(self.latencies)
        if self.new_tokens is not None:
            yield point(
                "tokens_per_second", "tokens/s", "higher", rate * self.new_tokens, labels=labels, is_headline=True
            )
            yield median_point("time_to_first_token_seconds", self.to_first, labels=labels)
            if self.new_tokens > 1:
                each = (np.subtract(self.latencies, self.to_first) / (self.new_tokens - 1)).tolist()
                yield median_point("time_per_output_token_seconds", each, labels=labels)
        yield point(
            "samples_per_second", "samples/s", "higher", rate, labels=labels, is_headline=self.new_tokens is None
        )
        yield median_point("latency_p50_seconds", self.latencies, labels=labels)
        if not can_tell(0.99, len(self.latencies)):
            return
        # Never between two calls: that a call took as long is a fact.
        longest = float(np.percentile(self.latencies, 99, method="higher"))
        yield point("latency_p99_seconds", "s", "lower", longest, labels=labels)


def _measure_classifier(
    work: Inference, signature: Signature, source: TensorSource, build: Build, sizes: list[int], seed: int
) -> Iterator[_OfBatchSize]:
    """All batch sizes with one predictor, which has a program for each."""
    _require_memory(forward_bytes(signature, max(sizes)), sizes)
    classifier = cast(Classifier, build(signature, source, 1))
    for size in sizes:
        inputs = prepare_inputs(signature, size, seed)
        with _names_batch_size(size):
            classifier.warm([size])
            latencies = time_calls(partial(classifier.logits, inputs), work.seconds, work.warmup_seconds)
        yield _OfBatchSize(size, latencies)


def prepare_inputs(signature: Signature, size: int, seed: int) -> npt.NDArray[np.float32]:
    """[size, *sample] as a server hands it on: contiguous, and of the type that the model takes."""
    return np.random.default_rng(seed).standard_normal((size, *signature.input_shape), np.float32)


def _measure_decoder(
    work: Inference, signature: Signature, source: TensorSource, build: Build, sizes: list[int], seed: int
) -> Iterator[_OfBatchSize]:
    """A decoder of as many slots as a batch has samples for each batch size: what a step costs is decided by its slots,
    taken or not. A prompt and the new tokens fill the context."""
    (context,) = signature.input_shape
    if work.new_tokens >= context:
        raise ConfigError(
            f"{_FIELD}.newTokens: {work.new_tokens} leave no room for a prompt in sequences of {context} tokens; "
            f"choose {context - 1} or fewer, or a longer sequenceLength"
        )
    _require_memory(decoder_bytes(signature, max(sizes)), sizes)
    for size in sizes:
        rng = np.random.default_rng(seed)
        prompts = rng.integers(0, signature.outputs, (size, context - work.new_tokens), np.int32)
        following = rng.integers(0, signature.outputs, (work.new_tokens - 1, size), np.int32)
        to_first: list[float] = []
        with _names_batch_size(size):
            decoder = cast(Decoder, build(signature, source, size))
            decoder.warm()
            answer = _answering(decoder, prompts, following, to_first)
            latencies = time_calls(answer, work.seconds, work.warmup_seconds)
        yield _OfBatchSize(size, latencies, work.new_tokens, to_first[-len(latencies) :])


def _answering(
    decoder: Decoder, prompts: npt.NDArray[np.int32], following: npt.NDArray[np.int32], to_first: list[float]
) -> Callable[[], None]:
    """A call that answers all `prompts` [n, T], as a batch that came at once, and adds to `to_first` the seconds until
    every one had its first token. The next tokens are given, [steps, n]: how they are drawn is not the model's speed,
    and which they are does not change it."""
    slots = list(range(len(prompts)))

    def answer() -> None:
        started = perf_counter()
        for slot, prompt in enumerate(prompts):
            decoder.prefill(slot, prompt)
        to_first.append(perf_counter() - started)
        for tokens in following:
            decoder.step(slots, tokens)
        for slot in slots:
            decoder.release(slot)

    return answer


def _require_memory(needed: int, sizes: list[int]) -> None:
    """Of the host, where that is what computes; a GPU says itself when it has too little."""
    if not sees_gpu(os.environ):
        require_memory(needed, f"{_FIELD}.batchSizes: {max(sizes)}", "choose a smaller one")


@contextlib.contextmanager
def _names_batch_size(size: int) -> Iterator[None]:
    """Says which batch size the memory was too small for."""
    try:
        yield
    except (GpuOutOfMemory, MemoryError) as error:
        raise ConfigError(
            f"{_FIELD}.batchSizes: {size} is too large for the memory here ({error}); choose a smaller one"
        ) from error
