"""Does this model predict what the proven revision predicts? Asked with a sample of what clients have asked."""

import asyncio
import hashlib
import random
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from capstan_runtime.contract.serving import Compare, ServeConfig
from capstan_runtime.errors import ConfigError
from capstan_runtime.serving.exchange import MIRRORED, Exchange
from capstan_runtime.serving.labels import label_form
from capstan_runtime.serving.metrics import Compared, Metrics
from capstan_runtime.serving.mounted import Mounted
from capstan_runtime.serving.scores import Floats

_AT_ONCE = 4
_MOST_WAITING = 16
"""With those that are under way, all samples that are ever in memory."""
_PAUSE_SECONDS = 1.0
"""After a comparison that failed: a replica that has too much to do already must not be asked more."""
_REST_SECONDS = 60.0
"""After an answer of this very revision: it has been promoted, and there is nothing to compare it with."""
_PEM = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_CREDENTIALS = (b"authorization", b"x-api-key")


@dataclass(frozen=True, slots=True)
class _Sample:
    inputs: Floats
    """[1, *input_shape]: one sample of a request, in memory of its own."""
    label: int
    """What this model predicts of it."""
    headers: dict[str, str]


class Comparison:
    """Counts comparisons in `metrics`; their results go nowhere else. A client never waits for one: requests are
    sampled when they have been answered, and what finds no place is dropped."""

    def __init__(
        self,
        config: ServeConfig,
        compare: Compare,
        metrics: Metrics,
        clock: Callable[[], float],
        log: Callable[[str], None],
        certificate: Path | None,
    ) -> None:
        """`certificate` is the folder of the one that pods of this service show; None: they speak plain HTTP. Raises
        ConfigError if there is none in it."""
        model = config.model
        self._version = model.version
        self._form = label_form(config.protocols, model.name)
        self._url = compare.url + self._form.path
        self._seconds_between = 1.0 / compare.most_per_second
        self._deadline_seconds = config.guards.timeout_seconds
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self._peer = _peer_of(certificate, clock, log)
        self._next_at = clock()
        self._is_failing = False
        self._waiting: asyncio.Queue[_Sample] = asyncio.Queue(_MOST_WAITING)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """On the event loop that requests are answered on."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._work()) for _ in range(_AT_ONCE)]

    async def stop(self) -> None:
        """Drops what waits and what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while not self._waiting.empty():
            self._waiting.get_nowait()
            self._metrics.note_compared(Compared.DROPPED)

    def offer(self, exchange: Exchange) -> None:
        """Takes one sample of a request that was answered, if it is time for one. Of a request with many one is drawn:
        they are not independent of each other, and the proven revision has its own clients to answer."""
        if exchange.is_mirrored or exchange.inputs is None or exchange.scores is None:
            return
        now = self._clock()
        if now < self._next_at:
            return
        self._next_at = now + self._seconds_between
        if self._waiting.full():
            self._metrics.note_compared(Compared.DROPPED)
            return
        at = random.randrange(len(exchange.inputs))  # nosec B311  # nothing is kept secret by it
        sample = _Sample(exchange.inputs[at : at + 1].copy(), int(exchange.scores.labels[at]), _headers_of(exchange))
        self._waiting.put_nowait(sample)

    async def _work(self) -> None:
        """Each connection is for one request: its Service chooses among the proven revision's pods anew, and leads
        elsewhere as soon as another revision is proven."""
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),
            timeout=aiohttp.ClientTimeout(self._deadline_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session:
            while True:
                await self._compare(await self._waiting.get(), session)

    async def _compare(self, sample: _Sample, session: aiohttp.ClientSession) -> None:
        try:
            version, label = await self._ask(sample, session)
        except asyncio.CancelledError:
            self._metrics.note_compared(Compared.DROPPED)
            raise
        except Exception as error:  # whatever it is, it costs this comparison and nothing else
            self._note_failure(f"{type(error).__name__}: {error}")
            return
        self._is_failing = False
        if version == self._version:
            self._next_at = self._clock() + _REST_SECONDS
        else:
            self._metrics.note_compared(Compared.SAME if label == sample.label else Compared.DIFFERENT)

    async def _ask(self, sample: _Sample, session: aiohttp.ClientSession) -> tuple[str | None, int]:
        """The revision that answers, and what it predicts."""
        body, headers = self._form.ask(sample.inputs)
        async with session.post(
            self._url,
            data=body,
            headers={**sample.headers, **headers},
            allow_redirects=False,
            ssl=self._peer(),
        ) as response:
            answer = await response.read()
            if response.status != 200:
                raise ConnectionError(f"status {response.status}: {answer[:200].decode(errors='replace')}")
            return response.headers.get("x-model-version"), self._form.read(answer)

    def _note_failure(self, what: str) -> None:
        self._metrics.note_compared(Compared.FAILED)
        self._next_at = max(self._next_at, self._clock() + _PAUSE_SECONDS)
        if not self._is_failing:
            self._log(f"comparing with the proven revision fails: {self._url}: {what}")
        self._is_failing = True


def _peer_of(
    folder: Path | None, clock: Callable[[], float], log: Callable[[str], None]
) -> Callable[[], aiohttp.Fingerprint | bool]:
    """How the proven revision is known before it gets anybody's key: it shows the certificate that this pod shows.
    No authority could vouch for it: a certificate is for the name that clients know, and this address is none."""
    if folder is None:
        return lambda: True

    def note(error: OSError) -> None:
        log(f"comparing: {folder}: {error}; the certificate from before is expected")

    try:
        return Mounted(folder, lambda: _fingerprint(folder), clock, note).current
    except OSError as error:
        raise ConfigError(
            f"guards.tls: {folder}: {error}; a Secret of type kubernetes.io/tls holds it as PEM"
        ) from error


def _fingerprint(folder: Path) -> aiohttp.Fingerprint:
    """Of the first certificate, which is the server's own. Raises OSError."""
    found = _PEM.search((folder / "tls.crt").read_text(errors="replace"))
    if found is None:
        raise OSError("tls.crt is no certificate in PEM")
    return aiohttp.Fingerprint(hashlib.sha256(ssl.PEM_cert_to_DER_cert(found[0])).digest())


def _headers_of(exchange: Exchange) -> dict[str, str]:
    """The client's own credentials, since the proven revision asks for some; the request's id, so that records of both
    revisions can be matched; and the mark."""
    given = {name: exchange.headers[name] for name in _CREDENTIALS if name in exchange.headers}
    return {
        **{name.decode(): value.decode(errors="replace") for name, value in given.items()},
        "x-request-id": exchange.request_id,
        MIRRORED.decode(): "1",
    }
