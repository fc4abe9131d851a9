"""Steps of several sizes, one after another, in both engines: each compiled once, and the same in both."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from capstan_runtime.contract.augmentation import Augmentation
from capstan_runtime.data.augment import Augment
from capstan_runtime.data.batches import with_changes
from tests.support.engines import FLAX, IMAGES, batch_of, context_of, deepspeed, make_engine

SMALL = {"cnn": {"channels": [4], "groups": 4}}
STEPS = 8
AUGMENT = Augment(
    Augmentation.parse({"horizontalFlip": {}, "multiScale": {"sizes": [6, 12], "everySteps": 1}}), IMAGES, 7
)
SIZES = [AUGMENT.size_of(step) for step in range(STEPS)]


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """A name for each program that XLA has compiled since."""
    names: list[str] = []

    def note(name: str, seconds: float, **more: Any) -> None:
        if name.endswith("backend_compile_duration"):
            names.append(name)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


def losses(framework: dict[str, Any], compiled: list[str]) -> tuple[list[float], list[int]]:
    """Of each step, with a validation at the data's own size in the middle; and the steps in which XLA compiled."""
    context = context_of(framework, SMALL)
    engine = make_engine(context)
    found, compiled_in = [], []
    for step in range(STEPS):
        batch = with_changes(batch_of(context, step), AUGMENT, step)
        before = len(compiled)
        found.append(engine.train_step(batch, 3e-3).fetch()["loss"])
        if len(compiled) > before:
            compiled_in.append(step)
        if step == 4:
            found.append(engine.evaluate([batch_of(context, 100)]).loss / 16)
    engine.close()
    return found, compiled_in


def test_both_engines_train_on_sizes_that_change_and_agree_on_the_losses(compiled: list[str]) -> None:
    of_flax, compiled_in = losses(FLAX, compiled)
    assert compiled_in == [SIZES.index(6), SIZES.index(12)] or compiled_in == [SIZES.index(12), SIZES.index(6)]
    of_deepspeed, _ = losses(deepspeed(0), compiled)
    np.testing.assert_allclose(of_flax, of_deepspeed, rtol=1e-3)
    assert SIZES.count(6) > 1 < SIZES.count(12)
