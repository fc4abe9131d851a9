"""Requests that arrive within a short window are computed together."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from capstan_runtime.serving.classify import BatchResult, Scorer
from capstan_runtime.serving.exchange import Trip
from capstan_runtime.serving.refusal import Refusal
from capstan_runtime.serving.scores import Floats, Scores
from capstan_runtime.serving.worker import Worker


@dataclass(slots=True)
class _Member:
    inputs: Floats
    trip: Trip
    answer: asyncio.Future[Scores]


class Batcher:
    """While a batch is computed, the next one gathers; it starts when it is full, or when its oldest request has waited
    for the window, whichever is first. A request is never split over batches, so one with more samples than fit is a
    batch by itself. A request whose future was cancelled leaves before its batch starts.
    """

    def __init__(
        self,
        worker: Worker,
        scorer: Scorer,
        max_batch_size: int,
        wait_seconds: float,
        on_batch: Callable[[BatchResult, int], None],
    ) -> None:
        """`max_batch_size` 1 and `wait_seconds` 0 compute each request by itself. `on_batch` hears of every result,
        and of how many samples it is."""
        self._worker = worker
        self._scorer = scorer
        self._max_batch_size = max_batch_size
        self._wait_seconds = wait_seconds
        self._on_batch = on_batch
        self._waiting: deque[_Member] = deque()
        self._waiting_samples = 0
        self._is_computing = False
        self._window: asyncio.Handle | None = None

    def submit(self, inputs: Floats, trip: Trip) -> asyncio.Future[Scores]:
        """The scores of `inputs` [n, …]; Refusal if there are none."""
        loop = asyncio.get_running_loop()
        trip.batched = perf_counter()
        answer: asyncio.Future[Scores] = loop.create_future()
        self._waiting.append(_Member(inputs, trip, answer))
        self._waiting_samples += len(inputs)
        if not self._is_computing:
            self._gather(loop)
        return answer

    def _gather(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts the next batch now, or when its window is over."""
        is_full = self._waiting_samples >= self._max_batch_size
        if self._window is not None:
            if not is_full:
                return
            self._window.cancel()
            self._window = None
        left = 0.0 if is_full else self._wait_seconds - (perf_counter() - self._waiting[0].trip.batched)
        if is_full or self._max_batch_size == 1:
            self._start()
        elif left > 0.0:
            self._window = loop.call_later(left, self._start)
        else:  # those that arrive in this turn of the loop still join
            self._window = loop.call_soon(self._start)

    def _start(self) -> None:
        self._window = None
        batch = self._take()
        if not batch:
            return
        self._is_computing = True
        began = perf_counter()
        samples = sum(len(member.inputs) for member in batch)
        for member in batch:
            member.trip.computing = began
            member.trip.batch_size = samples
        inputs = [member.inputs for member in batch]
        result = self._worker.run(lambda: self._scorer.score_requests(inputs))
        result.add_done_callback(lambda done: self._finish(batch, samples, done))

    def _take(self) -> list[_Member]:
        batch: list[_Member] = []
        samples = 0
        while self._waiting:
            member = self._waiting[0]
            if not member.answer.done():
                if batch and samples + len(member.inputs) > self._max_batch_size:
                    break
                samples += len(member.inputs)
                batch.append(member)
            self._waiting.popleft()
            self._waiting_samples -= len(member.inputs)
        return batch

    def _finish(self, batch: list[_Member], samples: int, done: asyncio.Future[BatchResult]) -> None:
        self._is_computing = False
        ended = perf_counter()
        if done.cancelled():
            for member in batch:
                member.answer.cancel()
            return
        result = done.result()
        self._on_batch(result, samples)
        for member, answer in zip(batch, result.answers, strict=True):
            member.trip.computed = ended
            if member.answer.done():
                continue
            if isinstance(answer, Refusal):
                member.answer.set_exception(answer)
            else:
                member.answer.set_result(answer)
        if self._waiting:
            self._gather(asyncio.get_running_loop())
