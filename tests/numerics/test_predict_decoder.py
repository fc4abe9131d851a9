"""Decoders of both frameworks: with a cache, slots that come and go, and padding, the trainers' own logits."""

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from capstan_runtime.contract.signature import Signature
from tests.support.engines import TIED, TRANSFORMER, Saved
from tests.support.predictors import (
    FRAMEWORKS,
    Array,
    Compilations,
    Framework,
    build,
    signature_of,
    state_of,
    trainer_forward,
)

# Two experts of four, each of which may take every token: a served model drops none.
COMPONENTS = {
    "transformer": {
        **TIED["transformer"],
        "alibi": {},
        "layerScale": {"initial": 0.5},
        "dropout": {"rate": 0.5},
        "experts": {"count": 4, "evalCapacityFactor": 2.0},
        "stochasticDepth": {"rate": 0.5},
        "reversible": {},
    }
}
MODELS = {"grouped": TRANSFORMER, "tied, with components": COMPONENTS}
VOCABULARY, CONTEXT, SLOTS = 64, 80, 3
LENGTHS = (1, 15, 16, 17, 33, CONTEXT - 1)
"""Of prompts: beside each border between two paddings."""


@functools.cache
def decoder_of(framework: Framework, name: str) -> Any:
    """The same one for all tests; each leaves it usable."""
    signature = signature_of(MODELS[name], (CONTEXT,), VOCABULARY)
    made = build(framework, signature, Saved(state_of(signature)), SLOTS)
    made.warm()
    assert (made.signature, made.slots, made.context) == (signature, SLOTS, CONTEXT)
    return made


def tokens(seed: int, count: int) -> Array:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).astype(np.int32)


@dataclass
class Naive:
    """The trainer's forward pass over the whole of a sequence, every time. What comes after a token does not change
    what comes before, so one length is enough."""

    signature: Signature
    framework: Framework

    def __post_init__(self) -> None:
        self._forward = trainer_forward(self.framework, self.signature, state_of(self.signature))

    def logits(self, sequence: Array) -> Array:
        whole = np.zeros((1, CONTEXT), np.int32)
        whole[0, : len(sequence)] = sequence
        return self._forward(whole)[0, len(sequence) - 1]


@dataclass
class Case:
    """A decoder and what it is compared with."""

    decoder: Any
    naive: Naive
    held: dict[int, Array] = field(default_factory=dict)
    """By slot, the sequence that is in it."""

    def prefill(self, slot: int, prompt: Array) -> None:
        self.held[slot] = prompt
        self._check(self.decoder.prefill(slot, prompt), slot)

    def step(self, slots: list[int], added: Array) -> None:
        logits = self.decoder.step(slots, added)
        assert logits.shape == (len(slots), VOCABULARY)
        for slot, token, found in zip(slots, added, logits, strict=True):
            self.held[slot] = np.append(self.held[slot], token)
            self._check(found, slot)

    def release(self, slot: int) -> None:
        del self.held[slot]
        self.decoder.release(slot)

    def _check(self, found: Array, slot: int) -> None:
        assert (found.shape, found.dtype) == ((VOCABULARY,), np.float32)
        expected = self.naive.logits(self.held[slot])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.fixture(scope="module", params=[(framework, name) for framework in FRAMEWORKS for name in MODELS])
def made(request: pytest.FixtureRequest) -> tuple[Any, Naive]:
    framework, name = request.param
    return emptied(decoder_of(framework, name)), Naive(decoder_of(framework, name).signature, framework)


def emptied(decoder: Any) -> Any:
    for slot in range(SLOTS):
        decoder.release(slot)
    return decoder


@pytest.fixture
def case(made: tuple[Any, Naive]) -> Any:
    decoder, naive = made
    return Case(emptied(decoder), naive)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_prompt_of_any_length_and_the_token_after_it(case: Case, length: int) -> None:
    case.prefill(1, tokens(length, length))
    case.step([1], tokens(0, 1))


@pytest.mark.parametrize("seed", range(4))
def test_sequences_come_and_go_in_any_order(case: Case, seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(60):
        free = [slot for slot in range(SLOTS) if slot not in case.held]
        full = [slot for slot, sequence in case.held.items() if len(sequence) == CONTEXT]
        if free and random.random() < 0.4:
            longest = CONTEXT if random.random() < 0.3 else 20
            case.prefill(int(random.choice(free)), tokens(random.integers(1 << 30), random.integers(1, longest)))
        elif full or (case.held and random.random() < 0.1):
            case.release(int(random.choice(full or list(case.held))))
        elif case.held:
            chosen = random.permutation(list(case.held))[: random.integers(1, len(case.held) + 1)].tolist()
            case.step(chosen, tokens(random.integers(1 << 30), len(chosen)))


def test_a_sequence_has_the_same_bits_alone_and_in_company(case: Case) -> None:
    """In its slot: some processors compute different rows of a product with different kernels."""
    decoder, prompt, added = case.decoder, tokens(1, 30), tokens(2, 40)
    alone = [decoder.prefill(1, prompt), *(decoder.step([1], added[at : at + 1])[0] for at in range(40))]
    decoder.release(1)
    for slot, length in ((0, 12), (2, 40)):
        decoder.prefill(slot, tokens(slot, length))
    together = [decoder.prefill(1, prompt)]
    for at in range(39):
        slots = [2, 1] if at % 2 else [0, 1, 2] if at % 3 else [1]
        row = decoder.step(slots, np.where(np.array(slots) == 1, added[at], at).astype(np.int32))[slots.index(1)]
        together.append(row)
    np.testing.assert_array_equal(alone[:40], together)


def test_the_likeliest_continuation_is_the_naive_one_to_the_end_of_the_context(case: Case) -> None:
    sequence = tokens(5, 9)
    logits = case.decoder.prefill(2, sequence)
    while len(sequence) < CONTEXT:
        assert logits.argmax() == case.naive.logits(sequence).argmax()
        sequence = np.append(sequence, logits.argmax()).astype(np.int32)
        (logits,) = case.decoder.step([2], sequence[-1:])
    with pytest.raises(ValueError, match="slot 2 holds 80 of 80 tokens; none can be added"):
        case.decoder.step([2], sequence[-1:])


def test_a_full_neighbour_loses_and_breaks_nothing(case: Case) -> None:
    case.prefill(0, tokens(1, CONTEXT - 1))
    case.prefill(1, tokens(2, 5))
    case.step([0, 1], tokens(3, 2))
    for seed in range(3):
        case.step([1], tokens(seed, 1))
    case.release(0)
    case.prefill(0, tokens(4, 3))
    case.step([1, 0], tokens(5, 2))


def test_what_cannot_be_done_is_refused_and_changes_nothing(case: Case) -> None:
    decoder = case.decoder
    case.prefill(0, tokens(1, 10))
    prompt = tokens(2, 4)
    refusals = [
        (lambda: decoder.prefill(0, prompt), "slot 0 holds a sequence; release it first"),
        (lambda: decoder.prefill(SLOTS, prompt), "there are slots 0 to 2"),
        (lambda: decoder.prefill(-1, prompt), "there are slots 0 to 2"),
        (lambda: decoder.release(SLOTS), "there are slots 0 to 2"),
        (lambda: decoder.prefill(1, prompt[:0]), "between 1 and 79 tokens expected"),
        (lambda: decoder.prefill(1, np.zeros(CONTEXT, np.int32)), "between 1 and 79 tokens expected"),
        (lambda: decoder.prefill(1, np.array([3, VOCABULARY], np.int32)), "tokens from 3 to 64; each must be below 64"),
        (lambda: decoder.prefill(1, np.array([-1, 3], np.int32)), "tokens from -1 to 3"),
        (lambda: decoder.step([1], prompt[:1]), "slot 1 holds 0 of 80 tokens; none can be added"),
        (lambda: decoder.step([], prompt[:0]), "one token for each slot expected"),
        (lambda: decoder.step([0, 0], prompt[:2]), "one token for each slot expected"),
        (lambda: decoder.step([0], prompt[:2]), "one token for each slot expected"),
        (lambda: decoder.step([0], np.array([VOCABULARY], np.int32)), "each must be below 64"),
    ]
    for refused, message in refusals:
        with pytest.raises(ValueError, match=message):
            refused()
    case.step([0], tokens(3, 1))
    decoder.release(2)
    case.prefill(1, prompt)


def test_the_frameworks_agree_and_each_reads_its_prompt_alone() -> None:
    flax, torch = (emptied(decoder_of(framework, "grouped")) for framework in FRAMEWORKS)
    prompt = tokens(8, 21)
    prompt.flags.writeable = False
    for decoder in (flax, torch):
        decoder.prefill(1, tokens(9, 50))
    pairs = [(flax.prefill(0, prompt), torch.prefill(0, prompt))]
    for at in range(10):
        added = tokens(at, 2)
        pairs.append((flax.step([0, 1], added), torch.step([0, 1], added)))
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


def test_nothing_is_compiled_once_it_is_warm() -> None:
    signature = signature_of(TRANSFORMER, (CONTEXT,), VOCABULARY)
    cold = build("flax", signature, Saved(state_of(signature)), SLOTS)
    with pytest.raises(ValueError, match="call warm first"):
        cold.prefill(0, tokens(1, 3))
    decoder = emptied(decoder_of("flax", "grouped"))
    compilations = Compilations()
    for slot, length in enumerate((3, 17, CONTEXT - 1)):
        decoder.prefill(slot, tokens(slot, length))
        decoder.step([slot], tokens(slot, 1))
    assert compilations.count == 0


def test_a_program_that_fails_frees_every_slot_and_the_next_ones_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = emptied(decoder_of("flax", "grouped"))
    case = Case(decoder, Naive(decoder.signature, "flax"))
    case.prefill(0, tokens(1, 10))

    def fail(parameters: Any, cache: Any, *arguments: Any) -> None:
        for array in cache:
            array.delete()  # as one that was given away
        raise RuntimeError("the device has failed")

    with monkeypatch.context() as patch:
        patch.setattr(decoder, "_step", fail)
        with pytest.raises(RuntimeError, match="the device has failed"):
            decoder.step([0], tokens(2, 1))
    with pytest.raises(ValueError, match="slot 0 holds 0 of 80 tokens"):
        decoder.step([0], tokens(2, 1))
    case.prefill(0, tokens(3, 10))
    case.step([0], tokens(4, 1))
