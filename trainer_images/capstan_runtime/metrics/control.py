"""A fixed piece of arithmetic, timed beside every measurement: when it takes longer, the machine is slower, whatever
the code under measurement does."""

import time

import numpy as np
import numpy.typing as npt

_SIDE = 192
_ROUNDS = 40
SAMPLES = 5


def measure_control(samples: int = SAMPLES) -> tuple[float, ...]:
    """Seconds of each of `samples` runs, of about 10 ms each on a core of 2025. Only numpy, one allocation, no I/O; the
    result depends on every round, so nothing can be left out."""
    matrix = np.random.default_rng(0).random((_SIDE, _SIDE), np.float32) / np.float32(_SIDE)
    seconds = []
    for _ in range(samples + 1):
        product: npt.NDArray[np.float32] = np.eye(_SIDE, dtype=np.float32)
        started = time.perf_counter()
        for _ in range(_ROUNDS):
            product = product @ matrix + matrix
        seconds.append(time.perf_counter() - started)
        assert np.isfinite(product).all()
    return tuple(seconds[1:])  # the first one starts BLAS' threads
