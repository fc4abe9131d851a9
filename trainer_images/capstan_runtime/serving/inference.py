"""The way of a classification: body, checks, scores, answer."""

from time import perf_counter

import numpy as np
import numpy.typing as npt

from capstan_runtime.contract.serving import Anomaly
from capstan_runtime.serving.anomaly import anomalous
from capstan_runtime.serving.cache import Compute
from capstan_runtime.serving.exchange import Answer, Exchange
from capstan_runtime.serving.kserve_v1 import KServeV1
from capstan_runtime.serving.metrics import Metrics
from capstan_runtime.serving.oip import OpenInference
from capstan_runtime.serving.scores import Floats, Scores
from capstan_runtime.serving.tensors import digest_of

Flags = npt.NDArray[np.bool_]


class Inference:
    """One handler for each protocol; what lies between reading and answering is the same."""

    def __init__(
        self,
        compute: Compute,
        metrics: Metrics,
        anomaly: Anomaly | None,
        *,
        most_body_bytes: int,
        hashes_inputs: bool,
        notes_facts: bool,
    ) -> None:
        """`hashes_inputs`: the cache needs their digests. `notes_facts`: for the audit record."""
        self._compute = compute
        self._metrics = metrics
        self._anomaly = anomaly
        self._most_body_bytes = most_body_bytes
        self._hashes_inputs = hashes_inputs
        self._notes_facts = notes_facts

    async def open_inference(self, protocol: OpenInference, exchange: Exchange) -> Answer:
        ask = protocol.read(await exchange.body(self._most_body_bytes), exchange)
        scores, flags = await self._scores(ask.inputs, exchange)
        return protocol.answer(ask, scores, flags, exchange)

    async def kserve_v1(self, protocol: KServeV1, exchange: Exchange) -> Answer:
        inputs = protocol.read(await exchange.body(self._most_body_bytes))
        scores, flags = await self._scores(inputs, exchange)
        return protocol.answer(scores, flags, exchange)

    async def _scores(self, inputs: Floats, exchange: Exchange) -> tuple[Scores, Flags | None]:
        trip = exchange.trip
        trip.admitted = perf_counter()
        if self._hashes_inputs:
            trip.input_digest = digest_of(inputs)
        if self._notes_facts:
            exchange.facts["input"] = inputs
        scores = await self._compute(inputs, trip)
        exchange.inputs, exchange.scores = inputs, scores
        if self._notes_facts:
            exchange.facts["output"] = scores.probabilities
        self._metrics.note_confidence(scores.confidence.tolist())
        if self._anomaly is None:
            return scores, None
        return scores, anomalous(self._anomaly, scores, self._metrics.note_anomalous)
