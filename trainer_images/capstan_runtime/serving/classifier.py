"""A classifier as a service: its thread's work, its guards, its routes."""

from collections.abc import Callable
from functools import partial

from capstan_runtime.contract.serving import ServeConfig
from capstan_runtime.errors import ConfigError
from capstan_runtime.serving import oip
from capstan_runtime.serving.batcher import Batcher
from capstan_runtime.serving.classify import BatchResult, Scorer, greatest_batch
from capstan_runtime.serving.exchange import Trip
from capstan_runtime.serving.inference import Inference
from capstan_runtime.serving.kserve_v1 import KServeV1
from capstan_runtime.serving.metrics import Metrics
from capstan_runtime.serving.oip import OpenInference
from capstan_runtime.serving.plan import Doors, guard
from capstan_runtime.serving.predictor import Classifier
from capstan_runtime.serving.routes import Access, Route, answers
from capstan_runtime.serving.scores import Floats, Scores
from capstan_runtime.serving.served import Served
from capstan_runtime.serving.tensors import InputRule
from capstan_runtime.serving.worker import Worker

Log = Callable[[str], None]


class ClassifierService:
    def __init__(
        self,
        config: ServeConfig,
        model: Classifier,
        worker: Worker,
        doors: Doors,
        metrics: Metrics,
        clock: Callable[[], float],
        log: Log,
    ) -> None:
        """Raises ConfigError if none of the protocols is one of classifiers, or one is not."""
        if "OpenAI" in config.protocols:
            raise ConfigError(
                f"protocols: OpenAI serves models of tokens, and this one is of {model.signature.kind}s; "
                "choose OpenInference, KServeV1 or both"
            )
        guards = config.guards
        self._config = config
        self._doors = doors
        self._metrics = metrics
        self._log = log
        self._served = Served(config.model, model.signature)
        batching = guards.batching
        bounds = guards.validation.range
        self._rule = InputRule(
            sample_shape=model.signature.input_shape,
            most_samples=guards.validation.max_samples,
            bounds=None if bounds is None else (bounds.min, bounds.max),
        )
        self._scorer = Scorer(
            model, greatest_batch(batching.max_batch_size if batching else None, self._rule.most_samples)
        )
        batcher = Batcher(
            worker,
            self._scorer,
            max_batch_size=batching.max_batch_size if batching else 1,
            wait_seconds=batching.wait_milliseconds / 1e3 if batching else 0.0,
            on_batch=self._note_batch,
        )

        async def compute(inputs: Floats, trip: Trip) -> Scores:
            return await batcher.submit(inputs, trip)

        guarded, cache = guard(compute, doors, guards, metrics, clock)
        if cache is not None:
            metrics.show("cache_bytes", "Memory of kept answers.", lambda: cache.nbytes)
        self._inference = Inference(
            guarded,
            metrics,
            guards.anomaly,
            most_body_bytes=guards.validation.max_body_kibibytes * 1024,
            hashes_inputs=cache is not None,
            notes_facts=guards.audit is not None,
        )

    def warm(self) -> None:
        """On the worker's thread. Raises what keeps the model from answering."""
        self._scorer.warm()

    def probe(self) -> None:
        """On the worker's thread: one blank sample."""
        self._scorer.probe()

    def routes(self) -> dict[str, Route]:
        routes: dict[str, Route] = {}
        name, version = self._config.model.name, self._config.model.version
        if "OpenInference" in self._config.protocols:
            protocol = OpenInference(self._served, self._rule, flags_anomalies=self._config.guards.anomaly is not None)
            infer = partial(self._inference.open_inference, protocol)
            metadata = answers(protocol.metadata())
            for path in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{version}"):
                routes[path] = Route("GET", metadata, Access.KEYED, oip.error_body)
                routes[f"{path}/infer"] = Route("POST", infer, Access.INFERENCE, oip.error_body)
        if "KServeV1" in self._config.protocols:
            predict = partial(self._inference.kserve_v1, KServeV1(self._served, self._rule))
            routes[f"/v1/models/{name}:predict"] = Route("POST", predict, Access.INFERENCE, oip.error_body)
        return routes

    def stop(self) -> None:
        """Nothing goes on when no request does."""

    def _note_batch(self, result: BatchResult, samples: int) -> None:
        self._metrics.note_batch(samples)
        if self._doors.breaker is not None:
            self._doors.breaker.note(has_failed=result.has_model_failed)
        if result.error is not None:
            whose = "the model fails" if result.has_model_failed else "an input makes the model fail"
            self._log(f"{whose}: {type(result.error).__name__}: {result.error}")
