"""One target under atheris, led by what it covers of our packages: `python -m tests.fuzz.guided NAME [OPTIONS]`.

OPTIONS are libFuzzer's.

A process of its own: atheris changes the bytecode of what it watches, and libFuzzer ends the process that it ran in.
"""

from __future__ import annotations

import sys
from random import Random

import atheris

with atheris.instrument_imports(include=["capstan_operator", "capstan_runtime", "capstan_local"]):
    from tests.fuzz.table import BROKEN, TARGETS

from tests.fuzz.bending import bend
from tests.fuzz.target import Target


def run(target: Target, options: list[str]) -> None:
    """Never returns."""

    def mutate(data: bytes, most_bytes: int, seed: int) -> bytes:
        chance = Random(seed)
        if chance.random() < 0.5:
            return bytes(atheris.Mutate(data, most_bytes))
        return bend(bytes(data), target.form, chance)[:most_bytes]

    for seed in target.seeds():
        target.feed(seed)  # what is made once, such as a server, is no part of the time of an input
    atheris.Setup([sys.argv[0], *options], lambda data: target.feed(bytes(data)) and None, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    run({**TARGETS, BROKEN.name: BROKEN}[sys.argv[1]], sys.argv[2:])
