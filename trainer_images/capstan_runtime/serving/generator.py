"""A decoder as a service: its guards, its routes, streams of tokens."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from capstan_runtime.contract.serving import ServeConfig
from capstan_runtime.errors import ConfigError
from capstan_runtime.serving import oip, openai
from capstan_runtime.serving.exchange import JSON, Answer, Exchange, Header
from capstan_runtime.serving.generation import Generation, RoundResult, Sequence, Token
from capstan_runtime.serving.metrics import Metrics
from capstan_runtime.serving.openai import Ask, Completions, Piece
from capstan_runtime.serving.plan import Doors
from capstan_runtime.serving.predictor import Decoder
from capstan_runtime.serving.refusal import Refusal
from capstan_runtime.serving.routes import Access, Handle, Route, answers
from capstan_runtime.serving.served import Served
from capstan_runtime.serving.text import Text, TokensOnly
from capstan_runtime.serving.worker import Worker

_EVENTS: tuple[Header, ...] = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))
_ROOTS = ("/v1", "/openai/v1")
"""KServe mounts OpenAI's protocol below the second."""


class GeneratorService:
    def __init__(
        self,
        config: ServeConfig,
        decoder: Decoder,
        worker: Worker,
        doors: Doors,
        metrics: Metrics,
        log: Callable[[str], None],
    ) -> None:
        """Raises ConfigError if the protocols or guards are not those of a model of tokens."""
        _require_fit(config)
        self._config = config
        self._doors = doors
        self._metrics = metrics
        self._log = log
        self._decoder = decoder
        self._served = Served(config.model, decoder.signature)
        self._completions = Completions(self._served, decoder.context)
        self._generation = Generation(decoder, worker, self._note_round)
        self._most_body_bytes = config.guards.validation.max_body_kibibytes * 1024
        self._notes_facts = config.guards.audit is not None
        metrics.show("active_sequences", "Sequences that are being continued.", lambda: self._generation.active)

    def warm(self) -> None:
        """On the worker's thread. Raises what keeps the model from answering."""
        self._decoder.warm()
        self._generation.probe()

    def probe(self) -> None:
        """On the worker's thread: a blank prompt, if a slot is free."""
        self._generation.probe()

    def routes(self) -> dict[str, Route]:
        name, version = self._config.model.name, self._config.model.version
        model = self._completions.model()
        routes: dict[str, Route] = {}

        def add(path: str, method: str, handle: Handle, access: Access) -> None:
            routes[path] = Route(method, handle, access, openai.error_body)

        for root in _ROOTS:
            add(f"{root}/models", "GET", answers({"object": "list", "data": [model]}), Access.KEYED)
            add(f"{root}/models/{name}", "GET", answers(model), Access.KEYED)
            add(f"{root}/completions", "POST", self._complete, Access.INFERENCE)
            add(f"{root}/chat/completions", "POST", self._refuse_chat, Access.INFERENCE)
        if "OpenInference" in self._config.protocols:
            for path in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{version}"):
                metadata = answers(_metadata(self._served))
                routes[path] = Route("GET", metadata, Access.KEYED, oip.error_body)
                routes[f"{path}/infer"] = Route("POST", self._refuse_infer, Access.INFERENCE, oip.error_body)
        return routes

    def stop(self) -> None:
        self._generation.stop()

    async def _complete(self, exchange: Exchange) -> Answer | None:
        ask = self._completions.read(await exchange.body(self._most_body_bytes))
        exchange.trip.admitted = perf_counter()
        if self._notes_facts:
            exchange.facts["input"] = ask.wish.prompt
        async with AsyncExitStack() as stack:
            on_first_token = await self._enter(stack)
            sequence = self._generation.start(ask.wish, exchange.trip)
            stack.callback(sequence.close)
            pieces = self._pieces(ask, sequence, exchange, on_first_token)
            await stack.enter_async_context(aclosing(pieces))
            completion_id = f"cmpl-{exchange.request_id}"
            if ask.is_stream:
                await self._stream(ask, completion_id, pieces, exchange)
                return None
            whole = Piece("", ())
            async for piece in pieces:
                whole = Piece(whole.text + piece.text, whole.tokens + piece.tokens, piece.finish_reason)
        body = self._completions.answer(ask, completion_id, whole)
        return Answer(200, body, (JSON, *self._served.headers(exchange.trip)))

    async def _enter(self, stack: AsyncExitStack) -> Callable[[], None]:
        """Passes the guards, whose places are held until the stack is left. What it returns is to be called at the
        first token: how long a whole continuation takes, its client decides."""
        adaptive, breaker = self._doors.adaptive, self._doors.breaker
        on_first_token = _nothing
        if adaptive is not None:
            place = adaptive.enter()
            stack.callback(adaptive.leave)
            on_first_token = partial(adaptive.learn, place)
        if breaker is not None and breaker.admit():
            stack.callback(breaker.end_trial)
        await stack.enter_async_context(self._doors.queue)
        return on_first_token

    async def _pieces(
        self, ask: Ask, sequence: Sequence, exchange: Exchange, on_first_token: Callable[[], None]
    ) -> AsyncGenerator[Piece, None]:
        """The continuation as it becomes certain; the last piece says why it ended."""
        text = Text(ask.stops) if self._served.signature.text else TokensOnly()
        made: list[int] = []
        waiting: list[Token] = []
        try:
            async for token in sequence:
                if not made:
                    on_first_token()
                made.append(token.id)
                waiting.append(token)
                if token.id in ask.stop_ids:
                    yield Piece(text.end(), tuple(waiting), "stop")
                    return
                certain, has_stopped = text.add(token.id)
                if has_stopped:
                    yield Piece(certain, tuple(waiting), "stop")
                    return
                if certain or text.shows_nothing:
                    yield Piece(certain, tuple(waiting))
                    waiting = []
            yield Piece(text.end(), tuple(waiting), "length")
        finally:
            self._metrics.note_tokens(len(made))
            if self._notes_facts:
                exchange.facts["output"] = np.array(made, np.int32)

    async def _stream(
        self, ask: Ask, completion_id: str, pieces: AsyncGenerator[Piece, None], exchange: Exchange
    ) -> None:
        """Begins with the first piece, so that whatever fails before it is an HTTP error; later ones are events."""
        characters = tokens = 0
        try:
            async for piece in pieces:
                if not exchange.has_started:
                    await exchange.begin_stream((*_EVENTS, *self._served.headers(exchange.trip)))
                await exchange.stream(self._completions.chunk(ask, completion_id, piece, characters))
                exchange.extend()
                characters += len(piece.text)
                tokens += len(piece.tokens)
        except Refusal as refusal:
            if not exchange.has_started:
                raise
            exchange.outcome = refusal.outcome
            await exchange.stream(openai.error_event(refusal), is_last=True)
            return
        if ask.wants_usage:
            await exchange.stream(self._completions.usage_chunk(ask, completion_id, tokens))
        await exchange.stream(openai.DONE, is_last=True)

    async def _refuse_chat(self, exchange: Exchange) -> Answer:
        await exchange.body(self._most_body_bytes)
        raise Refusal(400, "the model has no chat template; use /v1/completions")

    async def _refuse_infer(self, exchange: Exchange) -> Answer:
        await exchange.body(self._most_body_bytes)
        raise Refusal(400, "the model continues sequences of tokens; use /v1/completions")

    def _note_round(self, result: RoundResult) -> None:
        if result.tokens:
            self._metrics.note_batch(len(result.tokens))
        if self._doors.breaker is not None and (result.tokens or result.has_model_failed):
            self._doors.breaker.note(has_failed=result.has_model_failed)
        if result.error is not None:
            whose = "the model fails" if result.has_model_failed else "a prompt makes the model fail"
            self._log(f"{whose}: {type(result.error).__name__}: {result.error}")


def _require_fit(config: ServeConfig) -> None:
    if "OpenAI" not in config.protocols or "KServeV1" in config.protocols:
        raise ConfigError(
            f"protocols: {', '.join(config.protocols)} do not fit a model of tokens; choose OpenAI, or OpenAI and "
            "OpenInference"
        )
    if config.compare is not None:
        raise ConfigError("compare: compares predicted classes, and this is a model of tokens; leave it out")
    guards = config.guards
    for field, value in (
        ("cache", guards.cache),
        ("anomaly", guards.anomaly),
        ("validation.range", guards.validation.range),
    ):
        if value is not None:
            raise ConfigError(f"guards.{field}: is for classifiers, and this is a model of tokens; leave it out")


def _metadata(served: Served) -> dict[str, Any]:
    return {
        "name": served.model.name,
        "versions": [served.model.version],
        "platform": "capstan",
        "inputs": [],
        "outputs": [],
        "parameters": {"model_digest": served.model.root},
    }


def _nothing() -> None:
    pass
