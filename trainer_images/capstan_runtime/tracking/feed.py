"""One tracker behind a bounded queue and a thread of its own: it may be slow, broken or absent, and costs the run an
append to a list."""

import threading
import time
from collections import deque
from collections.abc import Callable

from capstan_runtime.tracking.sink import Point, Sink

_CAPACITY = 4096
"""Points that wait: hours of a run's reports, and about a megabyte."""
_BATCH = 500
"""Most points that are written at once."""
_AGAIN_SECONDS = 30.0
"""From one failed try to open a tracker to the next: a server that is being restarted is back by then."""
_LONGEST_REASON = 160


class Feed:
    """Points for one tracker. `put` never waits, and nothing raises."""

    def __init__(self, name: str, open_sink: Callable[[], Sink], tell: Callable[[str], None]) -> None:
        """`open_sink` is called by the thread, again and again until it does not raise; one that raises ImportError
        will not be asked again. `tell` takes one line, once, if points are dropped."""
        self._name = name
        self._open_sink = open_sink
        self._tell = tell
        self._sink: Sink | None = None
        self._again_at = 0.0
        self._is_useless = False
        self._points: deque[Point] = deque()
        self._news = threading.Condition()
        self._is_ending = False
        self._is_finished = False
        self._has_told = False
        self.dropped = 0
        """Points that the tracker has not got, and will not get."""
        self._thread = threading.Thread(target=self._run, name=f"tracking {name}", daemon=True)
        self._thread.start()

    def put(self, point: Point) -> None:
        """The tracker will get `point`, if it can take it."""
        with self._news:
            if len(self._points) < _CAPACITY:
                self._points.append(point)
                self._news.notify()
                return
        self._drop(1, f"it takes points more slowly than they come, and {_CAPACITY:,} wait")

    def end(self, is_finished: bool) -> None:
        """No point follows."""
        with self._news:
            self._is_ending, self._is_finished = True, is_finished
            self._news.notify()

    def wait(self, seconds: float) -> None:
        """Returns when the tracker has got all there is, or after so long: what is left then is dropped."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            with self._news:
                left = len(self._points)
                self._points.clear()
            self._drop(max(1, left), "it had not taken all points when the run ended")

    def _run(self) -> None:
        is_ending = False
        while not is_ending:
            points, is_ending = self._take()
            self._write(points)
        if self._sink is not None:
            try:
                self._sink.close(self._is_finished)
            except Exception as error:
                self._drop(0, _reason(error))

    def _take(self) -> tuple[list[Point], bool]:
        """The next points, at most a batch, and whether they are the last."""
        with self._news:
            while not self._points and not self._is_ending:
                self._news.wait()
            points = [self._points.popleft() for _ in range(min(_BATCH, len(self._points)))]
            return points, self._is_ending and not self._points

    def _write(self, points: list[Point]) -> None:
        try:
            if self._sink is None:
                self._sink = self._open()
            if self._sink is None:
                self._drop(len(points), "")
            elif points:
                self._sink.write(points)
        except Exception as error:  # whatever a tracker's library raises is its own affair
            self._drop(len(points), _reason(error))

    def _open(self) -> Sink | None:
        """None: it is not time to try again."""
        if self._is_useless or time.monotonic() < self._again_at:
            return None
        try:
            return self._open_sink()
        except Exception as error:
            self._is_useless = isinstance(error, ImportError)
            self._again_at = time.monotonic() + _AGAIN_SECONDS
            raise

    def _drop(self, points: int, reason: str) -> None:
        with self._news:
            self.dropped += points
            is_first, self._has_told = not self._has_told, True
        if is_first:
            self._tell(f"tracking.{self._name}: points are dropped: {reason}")


def _reason(error: Exception) -> str:
    """One line."""
    first = next(iter(str(error).splitlines()), "").strip()
    kind = type(error).__name__
    return f"{kind}: {first}"[:_LONGEST_REASON] if first else kind
