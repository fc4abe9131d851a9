"""Small reads from a store: what lies beside them is fetched too, because it is asked for next.

A model has hundreds of tensors of a few KB that lie side by side in a file. One request to a bucket for each would take
minutes. For one reader, and no longer than it lives: who verifies a checkpoint anew must fetch its bytes anew.
"""

import threading
from collections import OrderedDict

from capstan_runtime.checkpoint.store import Readable

_BLOCK_BYTES = 1 << 20
_SMALL_BYTES = 128 << 10
"""Larger reads go to the store as they are."""
_BLOCKS_HELD = 8


class ReadAhead:
    """Blocks of a store's objects, the last few held. Any thread may read."""

    def __init__(self, store: Readable) -> None:
        self._store = store
        self._blocks: OrderedDict[tuple[str, int], memoryview] = OrderedDict()
        self._lock = threading.Lock()
        """Held while a block is fetched: who waits for it most probably wants the same one."""

    def read_into(self, key: str, size: int, offset: int, target: memoryview) -> None:
        """As `Readable.read_into`, from an object of `size` bytes that does not change."""
        if len(target) > _SMALL_BYTES or offset + len(target) > size:
            self._store.read_into(key, offset, target)
            return
        done = 0
        while done < len(target):
            index, skip = divmod(offset + done, _BLOCK_BYTES)
            part = self._block(key, size, index)[skip : skip + len(target) - done]
            target[done : done + len(part)] = part
            done += len(part)

    def _block(self, key: str, size: int, index: int) -> memoryview:
        place = (key, index)
        with self._lock:
            if place not in self._blocks:
                start = index * _BLOCK_BYTES
                block = memoryview(bytearray(min(_BLOCK_BYTES, size - start)))
                self._store.read_into(key, start, block)
                self._blocks[place] = block
                if len(self._blocks) > _BLOCKS_HELD:
                    self._blocks.popitem(last=False)
            self._blocks.move_to_end(place)
            return self._blocks[place]
