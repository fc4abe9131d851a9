"""Some samples of others, under numbers of their own."""

import sys
from collections.abc import Callable

import numpy as np

from capstan_runtime.data.spec import Array, BadSample, BadSamples, Ids, Samples


class Chosen:
    """The samples `chosen` [n], ascending."""

    def __init__(self, samples: Samples, chosen: Ids) -> None:
        self._samples = samples
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def fetch(self, ids: Ids) -> tuple[Array, ...]:
        try:
            return self._samples.fetch(self._chosen[ids])
        except BadSamples as error:
            raise error.renumbered(lambda index: int(np.searchsorted(self._chosen, index))) from None


class Without:
    """All samples but `left_out` [n], ascending: a table of the few instead of one of the many."""

    def __init__(self, samples: Samples, left_out: Ids) -> None:
        self._samples = samples
        self._left_out = left_out
        self._kept_before = left_out - np.arange(len(left_out))
        """How many kept samples come before each one left out."""

    def __len__(self) -> int:
        return len(self._samples) - len(self._kept_before)

    def fetch(self, ids: Ids) -> tuple[Array, ...]:
        try:
            return self._samples.fetch(ids + np.searchsorted(self._kept_before, ids, side="right"))
        except BadSamples as error:
            raise error.renumbered(lambda index: index - int(np.searchsorted(self._left_out, index))) from None


class Replacing:
    """The same samples, each bad one replaced by the next good one, after the last by the first: which one that is
    depends on the data alone, so every rank of every world replaces it by the same."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._bad: set[int] = set()
        self.tell: Callable[[BadSample], None] = _warn
        """Called once for each that is met."""

    def __len__(self) -> int:
        return len(self._samples)

    def fetch(self, ids: Ids) -> tuple[Array, ...]:
        """Raises BadSamples if all samples are bad."""
        while True:
            try:
                return self._samples.fetch(self._replaced(ids))
            except BadSamples as error:
                new = [bad for bad in error.bad if bad.index not in self._bad]
                self._bad.update(bad.index for bad in new)
                for bad in new:
                    self.tell(bad)
                if not new or len(self._bad) >= len(self._samples):
                    raise

    def _replaced(self, ids: Ids) -> Ids:
        if not self._bad:
            return ids
        replaced = ids.copy()
        for row in np.flatnonzero(np.isin(ids, list(self._bad))):
            while int(replaced[row]) in self._bad:
                replaced[row] = (replaced[row] + 1) % len(self._samples)
        return replaced


def _warn(bad: BadSample) -> None:
    sys.stderr.write(f"warning: bad sample, replaced by the next good one: {bad}\n")
