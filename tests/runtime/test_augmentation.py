"""Augmentation: a function of seed, batch and sample alone."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from capstan_runtime.contract.augmentation import Augmentation
from capstan_runtime.contract.signature import Signature
from capstan_runtime.data.augment import Augment, Normalized, resized
from capstan_runtime.data.spec import DataSpec, Rows
from capstan_runtime.errors import ConfigError
from capstan_runtime.randomness import sample_keys
from capstan_runtime.serving.normalizing import Normalizing

SPEC = DataSpec("image", (7, 5, 3), 2, "blake3:x")
PICTURES = np.random.default_rng(0).random((64, 7, 5, 3), np.float32)
IDS = np.arange(1000, 1064)
EVERYTHING = {
    "horizontalFlip": {"probability": 0.5},
    "verticalFlip": {"probability": 0.3},
    "randomCrop": {"padding": 2},
    "multiScale": {"sizes": [4, 7, 9], "everySteps": 3},
    "normalize": {"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3]},
}


def augment(seed: int = 0, **config: Any) -> Augment:
    return Augment(Augmentation.parse(config), SPEC, seed)


def changed(batch: int = 0, rows: slice | np.ndarray = slice(None), seed: int = 0, **config: Any) -> np.ndarray:
    keys = sample_keys(seed, batch, IDS[rows])
    return augment(seed, **config).training(PICTURES[rows], keys, batch)


@given(batch=st.integers(0, 10_000), rows=st.lists(st.integers(0, 63), min_size=1, max_size=9))
@settings(max_examples=50)
def test_a_sample_is_changed_in_the_same_way_among_whichever_others_it_is_read(batch: int, rows: list[int]) -> None:
    whole = changed(batch, **EVERYTHING)
    some = changed(batch, np.asarray(rows), **EVERYTHING)
    assert np.array_equal(whole[rows], some)


def test_what_is_given_stays_as_it_was_and_seeds_and_batches_differ() -> None:
    before = PICTURES.copy()
    shapes = {name: value for name, value in EVERYTHING.items() if name != "multiScale"}
    results = [changed(batch, seed=seed, **shapes).tobytes() for batch in (0, 1) for seed in (0, 1)]
    assert len(set(results)) == 4
    assert np.array_equal(PICTURES, before)


def test_nothing_asked_for_is_nothing_done() -> None:
    assert augment().training(PICTURES, sample_keys(0, 0, IDS), 0) is PICTURES


@pytest.mark.parametrize(("name", "axis"), [("horizontalFlip", 2), ("verticalFlip", 1)])
def test_a_share_of_the_pictures_is_mirrored_and_the_others_are_not(name: str, axis: int) -> None:
    mirrored = 0
    for batch in range(40):
        result = changed(batch, **{name: {"probability": 0.3}})
        is_same = (result == PICTURES).all(axis=(1, 2, 3))
        is_mirrored = (result == np.flip(PICTURES, axis)).all(axis=(1, 2, 3))
        assert (is_same ^ is_mirrored).all()
        mirrored += int(is_mirrored.sum())
    # Of 2,560 draws: within four standard deviations.
    assert abs(mirrored - 768) < 4 * np.sqrt(2560 * 0.3 * 0.7)


def test_a_crop_is_a_window_of_the_padded_picture_and_all_windows_are_drawn() -> None:
    padded = np.pad(PICTURES, ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = set()
    for batch in range(4):
        for row, result in enumerate(changed(batch, randomCrop={"padding": 1})):
            found = [
                (top, left)
                for top in range(3)
                for left in range(3)
                if np.array_equal(padded[row, top : top + 7, left : left + 5], result)
            ]
            assert len(found) == 1
            places.add(found[0])
    assert len(places) == 9


def test_the_size_changes_every_few_batches_and_every_size_comes() -> None:
    drawn = augment(seed=3, multiScale={"sizes": [4, 6, 8], "everySteps": 5})
    sizes = [drawn.size_of(batch) for batch in range(300)]
    assert all(len(set(sizes[start : start + 5])) == 1 for start in range(0, 300, 5))
    assert {size: sizes.count(size) > 30 for size in (4, 6, 8)} == {4: True, 6: True, 8: True}
    assert [drawn.size_of(drawn.largest(batch)) for batch in range(50)] == [8] * 50
    assert all(drawn.largest(batch) >= batch for batch in range(50))
    other = augment(seed=4, multiScale={"sizes": [4, 6, 8], "everySteps": 5})
    assert sizes != [other.size_of(batch) for batch in range(300)]


@pytest.mark.parametrize("size", [3, 5, 12])
def test_pictures_are_resized_as_pillow_resizes_them(size: int) -> None:
    expected = [
        [np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR)) for plane in planes]
        for planes in np.moveaxis(PICTURES[:4], 3, 1)
    ]
    assert np.abs(np.moveaxis(resized(PICTURES[:4], size), 3, 1) - np.asarray(expected)).max() < 1e-6


def test_training_validation_and_a_service_are_normalised_alike() -> None:
    normalize = {"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3]}
    expected = ((PICTURES - [0.4, 0.5, 0.6]) / [0.1, 0.2, 0.3]).astype(np.float32)
    trained = changed(normalize=normalize)
    validated, targets = Normalized(Rows(PICTURES, np.arange(64)), augment(normalize=normalize)).fetch(np.arange(64))
    assert np.abs(trained - expected).max() < 1e-5
    assert np.array_equal(trained, validated)
    assert targets.tolist() == list(range(64))
    signature = Signature.parse(
        {"model": {"cnn": {"channels": [8]}}, "kind": "image", "inputShape": [7, 5, 3], "outputs": 2}
        | {"normalize": normalize}
    )

    class Seen:
        def __init__(self) -> None:
            self.signature = signature

        def warm(self, batch_sizes: object) -> None: ...

        def logits(self, inputs: np.ndarray) -> np.ndarray:
            return inputs

    assert signature.normalize is not None
    assert np.array_equal(Normalizing(Seen(), signature.normalize).logits(PICTURES), trained)


def test_what_is_no_picture_cannot_be_augmented() -> None:
    with pytest.raises(
        ConfigError, match=r"^spec.augmentation: changes pictures, and the data is vectors of 5; remove"
    ):
        Augment(Augmentation(), DataSpec("vector", (5,), 2, "blake3:x"), 0)
    with pytest.raises(ConfigError, match=r"normalize: has 1 channels and the data 3; give one mean and one std"):
        augment(normalize={"mean": [0.5], "std": [1.0]})
