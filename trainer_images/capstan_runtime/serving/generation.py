"""Sequences continued together: they join and leave between two steps of the decoder (continuous batching)."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import numpy.typing as npt

from capstan_runtime.serving.exchange import Trip
from capstan_runtime.serving.predictor import Decoder, Sampling
from capstan_runtime.serving.refusal import Outcome, Refusal
from capstan_runtime.serving.sampling import Sampler, log_probabilities
from capstan_runtime.serving.scores import Floats
from capstan_runtime.serving.worker import Worker

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Token:
    id: int
    logprob: float | None = None
    """None: was not asked for."""
    likeliest: tuple[tuple[int, float], ...] = ()
    """Tokens and their log probabilities, as many as were asked for."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be continued, and how."""

    prompt: Tokens
    most_tokens: int
    sampling: Sampling
    logprobs: int | None = None
    """How many of the likeliest tokens to tell with each. None: not even its own log probability."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One continuation under way. `async for token in sequence` until as many as wished are there; `close` it when
    they are not wanted any more."""

    wish: Wish
    trip: Trip
    sampler: Sampler
    slot: int = -1
    last: int = 0
    made: int = 0
    is_closed: bool = False
    _tokens: asyncio.Queue[Token | Refusal | None] = field(default_factory=asyncio.Queue)

    def __aiter__(self) -> "Sequence":
        return self

    async def __anext__(self) -> Token:
        """Raises Refusal when the model fails."""
        token = await self._tokens.get()
        if token is None:
            raise StopAsyncIteration
        if isinstance(token, Refusal):
            raise token
        return token

    def put(self, token: Token | Refusal | None) -> None:
        self._tokens.put_nowait(token)

    def close(self) -> None:
        """Its slot is free before the next step."""
        self.is_closed = True


@dataclass(slots=True)
class RoundResult:
    """What one round on the worker's thread came to."""

    tokens: list[tuple[Sequence, Token]]
    failed: list[tuple[Sequence, Refusal]]
    has_model_failed: bool
    error: Exception | None


class Generation:
    def __init__(self, decoder: Decoder, worker: Worker, on_round: Callable[[RoundResult], None]) -> None:
        """`on_round` hears of every round."""
        self._decoder = decoder
        self._worker = worker
        self._on_round = on_round
        self._free = list(range(decoder.slots))
        self._waiting: deque[Sequence] = deque()
        self._active: list[Sequence] = []
        self._running: asyncio.Task[None] | None = None

    @property
    def active(self) -> int:
        """Sequences that hold a slot."""
        return len(self._active)

    def start(self, wish: Wish, trip: Trip) -> Sequence:
        """The continuation, which waits for a slot if all are taken."""
        sequence = Sequence(wish, trip, Sampler(wish.sampling))
        trip.batched = perf_counter()
        self._waiting.append(sequence)
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._run())
        return sequence

    def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()

    def probe(self) -> None:
        """On the worker's thread: raises what keeps the decoder from answering. Uses a slot only if one is free."""
        if self._free:
            self._probe(self._free[-1])

    async def _run(self) -> None:
        try:
            while self._waiting or self._active:
                leaving = self._drop_closed()
                joining = self._next_waiting()
                if joining is None and not self._active and not leaving:
                    continue
                staying = list(self._active)
                if joining is not None:
                    self._active.append(joining)
                result = await self._worker.run(lambda: self._round(leaving, joining, staying))  # noqa: B023
                self._hand_out(result)
        finally:
            self._running = None
            for sequence in (*self._active, *self._waiting):  # only when this task was cancelled, or is broken
                sequence.put(Refusal(503, "the replica is going away; try again", outcome=Outcome.UNAVAILABLE))

    def _drop_closed(self) -> list[int]:
        """Slots of sequences that nobody wants any more."""
        closed = [sequence for sequence in self._active if sequence.is_closed]
        for sequence in closed:
            self._leave(sequence)
        return [sequence.slot for sequence in closed]

    def _next_waiting(self) -> Sequence | None:
        """One at a time, so that those under way wait for one prompt at most."""
        while self._waiting and self._free:
            sequence = self._waiting.popleft()
            if not sequence.is_closed:
                sequence.slot = self._free.pop()
                sequence.trip.computing = perf_counter()
                return sequence
        while self._waiting and self._waiting[0].is_closed:
            self._waiting.popleft()
        return None

    def _leave(self, sequence: Sequence) -> None:
        self._active.remove(sequence)
        self._free.append(sequence.slot)

    def _round(self, leaving: list[int], joining: Sequence | None, staying: list[Sequence]) -> RoundResult:
        """On the worker's thread: slots are freed, one prompt is read, everybody else gets a token."""
        result = RoundResult([], [], False, None)
        self._free_slots(leaving, result)
        if staying:
            self._step(staying, result)
        if joining is not None:
            self._join(joining, result)
        return result

    def _step(self, staying: list[Sequence], result: RoundResult) -> None:
        slots = [sequence.slot for sequence in staying]
        lasts = np.array([sequence.last for sequence in staying], np.int32)
        try:
            logits = self._decoder.step(slots, lasts)
        except Exception as error:
            result.has_model_failed, result.error = True, error
            result.failed.extend((sequence, _model_failed()) for sequence in staying)
            self._free_slots(slots, result)
            return
        for sequence, row in zip(staying, logits, strict=True):
            self._draw(sequence, row, result)

    def _join(self, joining: Sequence, result: RoundResult) -> None:
        try:
            logits = self._decoder.prefill(joining.slot, joining.wish.prompt)
        except Exception as error:
            self._blame(joining, error, result)
            return
        self._draw(joining, logits, result)

    def _draw(self, sequence: Sequence, logits: Floats, result: RoundResult) -> None:
        if not np.isfinite(logits).all():
            self._blame(sequence, ArithmeticError("a logit is NaN or infinite"), result)
            return
        token = sequence.sampler.draw(logits)
        result.tokens.append((sequence, _token(token, logits, sequence.wish.logprobs)))
        if sequence.made + 1 >= sequence.wish.most_tokens:
            self._free_slots([sequence.slot], result)

    def _blame(self, sequence: Sequence, error: Exception, result: RoundResult) -> None:
        """The model, if it cannot even continue a blank prompt; else this sequence."""
        result.error = error
        self._free_slots([sequence.slot], result)
        try:
            self._probe(sequence.slot)
        except Exception:
            result.has_model_failed = True
            result.failed.append((sequence, _model_failed()))
            return
        text = f"the model cannot continue this prompt ({type(error).__name__}), but others"
        result.failed.append((sequence, Refusal(422, text)))

    def _probe(self, slot: int) -> None:
        logits = self._decoder.prefill(slot, np.zeros(1, np.int32))
        self._decoder.release(slot)
        if not np.isfinite(logits).all():
            raise ArithmeticError("a logit is NaN or infinite")

    def _free_slots(self, slots: list[int], result: RoundResult) -> None:
        for slot in slots:
            try:
                self._decoder.release(slot)
            except Exception as error:
                result.has_model_failed, result.error = True, error

    def _hand_out(self, result: RoundResult) -> None:
        self._on_round(result)
        now = perf_counter()
        for sequence, token in result.tokens:
            sequence.last = token.id
            sequence.made += 1
            sequence.trip.computed = now
            sequence.trip.batch_size = max(sequence.trip.batch_size, len(result.tokens))
            sequence.put(token)
            if sequence.made >= sequence.wish.most_tokens:
                sequence.put(None)
                self._leave(sequence)
        for sequence, refusal in result.failed:
            sequence.put(refusal)
            self._leave(sequence)


def _model_failed() -> Refusal:
    return Refusal(500, "the model failed; the server's log says why", outcome=Outcome.FAILED)


def _token(token: int, logits: Floats, logprobs: int | None) -> Token:
    if logprobs is None:
        return Token(token)
    all_logprobs = log_probabilities(logits)
    order = all_logprobs.argsort()[::-1][:logprobs]
    return Token(token, float(all_logprobs[token]), tuple((int(other), float(all_logprobs[other])) for other in order))
