"""Whether this replica lives, and whether it should be asked."""

from importlib.metadata import version
from time import monotonic

from capstan_runtime.contract.serving import RateLimit, ServeConfig
from capstan_runtime.serving import oip
from capstan_runtime.serving.exchange import Answer, Exchange
from capstan_runtime.serving.metrics import CONTENT_TYPE, Metrics
from capstan_runtime.serving.rate_limit import RateLimiter
from capstan_runtime.serving.routes import Access, Handle, Route, answers, json_answer
from capstan_runtime.serving.worker import Worker

_STUCK_TIMEOUTS = 3.0
"""A call of the model that takes so many times as long as a request may, does not come back any more."""


_SCRAPES = RateLimit(requests=10, burst=20)
"""Of the metrics, per client. The operator asks every two seconds, Prometheus every 15; an answer takes milliseconds
that requests would have had."""


class Health:
    """Probes and metrics. Ready is the model: warmed, and not about to leave. An open circuit does not count: every
    replica of a bad model would leave the service, and its clients would be told less than 503 tells them."""

    def __init__(self, config: ServeConfig, worker: Worker, metrics: Metrics) -> None:
        self._config = config
        self._worker = worker
        self._metrics = metrics
        self._scrapes = RateLimiter(_SCRAPES, monotonic)
        self.is_warm = False
        self.is_draining = False

    @property
    def is_ready(self) -> bool:
        return self.is_warm and not self.is_draining

    @property
    def is_live(self) -> bool:
        """False when the model hangs. While it warms up it may take its time: the start-up probe bounds that."""
        return not self.is_warm or self._worker.busy_seconds < _STUCK_TIMEOUTS * self._config.guards.timeout_seconds

    def routes(self) -> dict[str, Route]:
        name, revision = self._config.model.name, self._config.model.version
        model = f"/v2/models/{name}"
        handlers: dict[str, Handle] = {
            "/v2/health/live": self._live,
            "/v2/health/ready": self._ready,
            f"{model}/ready": self._model_ready,
            f"{model}/versions/{revision}/ready": self._model_ready,
            "/metrics": self._show_metrics,
        }
        if "KServeV1" in self._config.protocols:
            handlers |= {"/v1/models": answers({"models": [name]}), f"/v1/models/{name}": self._model_ready}
        routes = {path: Route("GET", handle, Access.OPEN, oip.error_body) for path, handle in handlers.items()}
        server = {"name": "capstan", "version": version("capstan"), "extensions": ["binary_tensor_data"]}
        routes["/v2"] = Route("GET", answers(server), Access.KEYED, oip.error_body)
        return routes

    async def _live(self, _: Exchange) -> Answer:
        return json_answer(200 if self.is_live else 503, {"live": self.is_live})

    async def _ready(self, _: Exchange) -> Answer:
        return json_answer(200 if self.is_ready else 503, {"ready": self.is_ready})

    async def _model_ready(self, _: Exchange) -> Answer:
        return json_answer(200 if self.is_ready else 503, {"name": self._config.model.name, "ready": self.is_ready})

    async def _show_metrics(self, exchange: Exchange) -> Answer:
        self._scrapes.take(exchange.client)
        return Answer(200, self._metrics.render(), ((b"content-type", CONTENT_TYPE),))
