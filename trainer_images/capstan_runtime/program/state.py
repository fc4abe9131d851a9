"""The state of a program on its way into checkpoints and out of them."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from capstan_runtime.engine import LocalTensor, TensorSource
from capstan_runtime.errors import ConfigError
from capstan_runtime.program.tree import Tree, put_together, share, take_apart


class ProgramState:
    """One rank's side of it: what `restore` and the saver are given in the place of an engine."""

    def __init__(self, rank: int, world: int, exchange: Callable[[bytes], list[bytes]]) -> None:
        self._rank = rank
        self._world = world
        self.exchange = exchange
        """Every rank's payload, in rank order. Collective."""
        self.restored: Mapping[str, Any] | None = None
        """What was saved: `state` and the facts beside it; None: nothing was restored."""
        self._next: Tree | None = None

    def take(self, state: object, **facts: object) -> None:
        """The next save is of `state`, and of `facts`, which are no tensors. Collective. Raises ConfigError when it
        cannot be saved, or when the ranks do not hold the same tensors."""
        tree = take_apart(state)
        form = [(leaf.name, leaf.shape, leaf.dtype) for leaf in tree.leaves]
        forms = self.exchange(hashlib.sha256(json.dumps(form).encode()).digest())
        for rank, other in enumerate(forms):
            if other != forms[0]:
                raise ConfigError(
                    f"job.save: rank {rank} gives tensors of other names, shapes or types than rank 0; every rank must "
                    "give the same state, of which each saves a part"
                )
        document = [["state", tree.document], *([name, fact] for name, fact in facts.items())]
        self._next = Tree({"dict": document}, tree.leaves)

    def export_state(self) -> Iterator[LocalTensor]:
        """This rank's share of what `take` was given."""
        assert self._next is not None
        tree, self._next = self._next, None
        return share(tree, self._rank, self._world)

    def import_state(self, source: TensorSource) -> None:
        """Reads all of it: every rank holds the whole state."""
        self.restored = put_together(source)
