"""The ASGI application: protocols, guards and the model of one replica."""

import asyncio
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from time import monotonic, perf_counter, time
from typing import Any, cast

from capstan_runtime.contract.serving import ServeConfig
from capstan_runtime.serving import oip, openai
from capstan_runtime.serving.audit import AuditLog, Sink
from capstan_runtime.serving.classifier import ClassifierService
from capstan_runtime.serving.exchange import JSON, Answer, Exchange, Header, Receive, Scope, Send
from capstan_runtime.serving.generator import GeneratorService
from capstan_runtime.serving.health import Health
from capstan_runtime.serving.metrics import Metrics
from capstan_runtime.serving.plan import Doors, build_doors
from capstan_runtime.serving.predictor import Classifier, Decoder
from capstan_runtime.serving.refusal import Gone, Outcome, Refusal, Shed
from capstan_runtime.serving.routes import Access, ErrorBody, Route
from capstan_runtime.serving.watch import Watch
from capstan_runtime.serving.worker import Worker

_STOP_SECONDS = 2.0
"""Each for audit lines and for spans that wait when the application stops."""
_GONE_STATUS = 499
"""As nginx notes a client that did not wait; nobody sees it but audit and traces."""


def make_app(
    config: ServeConfig,
    model: Classifier | Decoder,
    *,
    api_keys: Path | None = None,
    certificate: Path | None = None,
    audit_sink: Sink | None = None,
    clock: Callable[[], float] = monotonic,
    log: Callable[[str], None] | None = None,
) -> "Application":
    """The application that serves `model` as `config` says.

    `api_keys` is the folder of keys that `guards.auth` asks for, and `certificate` that of the one that the service's
    pods show (None: they speak plain HTTP), by which they know each other; `audit_sink` gets the lines of
    `guards.audit` (None: standard output); `clock` counts seconds for limits, breaker and cache; `log` gets lines for
    people (None: standard error). Raises ConfigError when they do not fit together.
    """
    return Application(config, model, api_keys, certificate, audit_sink or _to_stdout, clock, log or _to_stderr)


class Application:
    """Whoever runs it sends ASGI's lifespan events, or calls `start` and `stop` itself."""

    def __init__(
        self,
        config: ServeConfig,
        model: Classifier | Decoder,
        api_keys: Path | None,
        certificate: Path | None,
        audit_sink: Sink,
        clock: Callable[[], float],
        log: Callable[[str], None],
    ) -> None:
        guards = config.guards
        self._config = config
        self._log = log
        self._deadline_seconds = guards.timeout_seconds
        self._doors = build_doors(guards, api_keys, clock, log)
        self._admissions = self._doors.admissions()
        self.metrics = Metrics(config.model)
        _show_doors(self.metrics, self._doors)
        self._worker = Worker()
        self._service: ClassifierService | GeneratorService
        if model.signature.kind == "tokens":
            decoder = cast(Decoder, model)
            self._service = GeneratorService(config, decoder, self._worker, self._doors, self.metrics, log)
        else:
            classifier = cast(Classifier, model)
            self._service = ClassifierService(config, classifier, self._worker, self._doors, self.metrics, clock, log)
        self._health = Health(config, self._worker, self.metrics)
        self._routes = {**self._health.routes(), **self._service.routes()}
        self._audit: AuditLog | None = None
        if guards.audit is not None:
            origin = {"time": time(), "service": config.service, **_model_facts(config)}
            self._audit = AuditLog(guards.audit, audit_sink, origin, self.metrics.note_dropped)
        self._comparison = None
        if config.compare is not None:
            from capstan_runtime.serving.compare import Comparison  # brings an HTTP client, which others need not have

            self._comparison = Comparison(config, config.compare, self.metrics, clock, log, certificate)
        self._tracer = None
        if guards.tracing is not None:
            from capstan_runtime.serving.tracing import Tracer  # imports that others need not pay for

            self._tracer = Tracer(guards.tracing, config)

    async def start(self) -> None:
        """Warms the model; ready from then on. Raises what keeps the model from answering."""
        await self._worker.run(self._service.warm)
        if self._comparison is not None:
            self._comparison.start()
        self._health.is_warm = True

    def drain(self) -> None:
        """Not ready any more; requests that still come are answered."""
        self._health.is_draining = True

    async def check(self) -> None:
        """Raises what keeps the model from answering; waits for the calls that are under way."""
        await self._worker.run(self._service.probe)

    async def stop(self) -> None:
        """When no request is under way: writes what waits, and ends the threads."""
        self.drain()
        if self._comparison is not None:
            await self._comparison.stop()
        self._service.stop()
        self._worker.stop()
        if self._audit is not None:
            await asyncio.to_thread(self._audit.stop, _STOP_SECONDS)
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.stop, _STOP_SECONDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._meet(scope["method"], Exchange(scope, receive, send))
            case "lifespan":
                await self._live(receive, send)
            case "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1003})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.start()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _meet(self, method: str, exchange: Exchange) -> None:
        route = self._routes.get(exchange.path)
        if route is None:
            error_body = _error_body_of(exchange.path, self._config)
            await self._refuse(exchange, Refusal(404, f"there is nothing at {exchange.path[:200]}"), error_body)
        elif method != route.method:
            allow: tuple[Header, ...] = ((b"allow", route.method.encode()),)
            refusal = Refusal(405, f"{method} is not allowed here; use {route.method}", headers=allow)
            await self._refuse(exchange, refusal, route.error_body)
        elif route.access is Access.INFERENCE:
            await self._infer(exchange, route)
        else:
            try:
                if route.access is Access.KEYED:
                    self._doors.authorize(exchange)
                answer = await route.handle(exchange)
                assert answer is not None
            except Refusal as refusal:
                await self._refuse(exchange, refusal, route.error_body)
            else:
                await exchange.send(answer)

    async def _infer(self, exchange: Exchange, route: Route) -> None:
        """All of a request's life. Whatever happens, it is counted, and recorded where there is a record."""
        shed: Shed | None = None
        exchange.outcome = Outcome.GONE  # until something better is known
        exchange.status = _GONE_STATUS
        watch = Watch(exchange)
        try:
            refusal = await self._answer(exchange, route, watch)
            if refusal is not None:
                shed = refusal.shed
                exchange.outcome = refusal.outcome
                if not exchange.has_started:
                    await self._refuse(exchange, refusal, route.error_body)
        finally:
            watch.stop()
            self._note_end(exchange, shed)

    async def _answer(self, exchange: Exchange, route: Route, watch: Watch) -> Refusal | None:
        """Answers within the deadline; else why not. None, too, when the client has gone."""
        loop = asyncio.get_running_loop()
        deadline = asyncio.timeout(self._deadline_seconds)
        exchange.extend = lambda: deadline.reschedule(loop.time() + self._deadline_seconds)
        try:
            async with deadline:
                if not self._health.is_warm:
                    raise Refusal(503, "the model is not ready yet; try again", outcome=Outcome.UNAVAILABLE)
                for admit in self._admissions:
                    admit(exchange)
                answer = await route.handle(exchange)
                if exchange.outcome is Outcome.GONE:  # a stream may have ended with an error
                    exchange.outcome = Outcome.OK
                if answer is not None:
                    await exchange.send(answer)
        except Refusal as refusal:
            return refusal
        except Gone:
            return None
        except TimeoutError:
            if deadline.expired():
                return _too_late(exchange, self._deadline_seconds)
            return self._failed()
        except asyncio.CancelledError:
            if not watch.is_gone:
                raise
            watch.forgive()
            exchange.outcome = Outcome.GONE
        except Exception:
            return self._failed()
        return None

    def _failed(self) -> Refusal:
        self._log(traceback.format_exc().rstrip())
        return Refusal(500, "the server failed; its log says why", outcome=Outcome.FAILED)

    async def _refuse(self, exchange: Exchange, refusal: Refusal, error_body: ErrorBody) -> None:
        headers = [JSON, *refusal.headers]
        if refusal.retry_after_seconds is not None:
            headers.append((b"retry-after", b"%d" % refusal.retry_after_seconds))
        body = error_body(refusal, exchange.request_id)
        await exchange.send(Answer(refusal.status, body, tuple(headers)))

    def _note_end(self, exchange: Exchange, shed: Shed | None) -> None:
        seconds = perf_counter() - exchange.trip.received
        if exchange.is_mirrored:
            self.metrics.note_mirrored(exchange.outcome)
        else:
            self.metrics.note_end(exchange.outcome, shed, seconds)
        if self._comparison is not None and exchange.outcome is Outcome.OK:
            self._comparison.offer(exchange)
        if self._audit is not None:
            self._audit.record(
                {
                    "time": time(),
                    "request_id": exchange.request_id,
                    "client": exchange.client,
                    "path": exchange.path,
                    "status": exchange.status,
                    "outcome": exchange.outcome.value,
                    "seconds": round(seconds, 6),
                    "cached": exchange.trip.is_cached,
                    "mirrored": exchange.is_mirrored,
                    **_model_facts(self._config),
                    **exchange.facts,
                }
            )
        if self._tracer is not None:
            self._tracer.record(exchange)


def _too_late(exchange: Exchange, seconds: float) -> Refusal:
    if not exchange.trip.admitted:
        return Refusal(408, f"the request did not arrive within {seconds:g} s", outcome=Outcome.TIMEOUT)
    return Refusal(504, f"there was no answer within {seconds:g} s", outcome=Outcome.TIMEOUT)


def _error_body_of(path: str, config: ServeConfig) -> ErrorBody:
    is_openai = "OpenAI" in config.protocols and path.startswith(("/v1/", "/openai/"))
    return openai.error_body if is_openai else oip.error_body


def _model_facts(config: ServeConfig) -> dict[str, Any]:
    return {"model": config.model.name, "version": config.model.version, "digest": config.model.root}


def _show_doors(metrics: Metrics, doors: Doors) -> None:
    metrics.show("ongoing_requests", "Requests that are worked on or wait for it.", lambda: doors.queue.ongoing)
    metrics.show("queue_depth", "Of those, the ones that wait for a place.", lambda: doors.queue.depth)
    if (breaker := doors.breaker) is not None:
        metrics.show("circuit_state", "Of the breaker: 0 closed, 1 half open, 2 open.", lambda: breaker.state)
    if (adaptive := doors.adaptive) is not None:
        metrics.show("adaptive_limit", "Requests at a time that are answered in time.", lambda: adaptive.limit)


def _to_stdout(lines: bytes) -> None:
    sys.stdout.buffer.write(lines)
    sys.stdout.buffer.flush()


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"serving: {line}\n")
    sys.stderr.flush()
