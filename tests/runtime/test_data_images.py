"""Pictures in folders: which samples they make, and how those that are none are named."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from capstan_runtime.contract.data import Data
from capstan_runtime.data.open import open_dataset, open_samples
from capstan_runtime.data.spec import BadSamples, Samples
from capstan_runtime.errors import ConfigError


def picture(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (8, 8), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)
    return path


def opened(root: Path, **more: Any) -> Samples:
    return open_samples(Data.parse({"images": {"path": str(root), "size": 4, **more}}), {})[0]


def a_folder(root: Path) -> Path:
    for number in range(3):
        picture(root / "cat" / f"{number}.png", (255, 0, 0))
        picture(root / "dog" / "big" / f"{number}.png", (0, 51 * number, 255), (16, 8))
    (root / "cat" / "notes.txt").write_text("no picture")
    (root / ".hidden").mkdir()
    return root


def test_classes_are_folders_and_samples_the_pictures_in_them(tmp_path: Path) -> None:
    dataset = open_dataset(
        Data.parse({"images": {"path": str(a_folder(tmp_path)), "size": 4, "validationFraction": 0.3}}), 0, {}
    )
    assert (dataset.spec.kind, dataset.spec.input_shape, dataset.spec.outputs) == ("image", (4, 4, 3), 2)
    assert (len(dataset.train), len(dataset.validation)) == (4, 2)
    samples = opened(tmp_path)
    inputs, labels = samples.fetch(np.asarray([5, 0, 0]))
    assert labels.tolist() == [1, 0, 0]
    assert inputs.dtype == np.float32
    assert np.unique(inputs.reshape(3, -1, 3), axis=1)[:, 0].tolist() == [
        pytest.approx([0.0, 0.4, 1.0]),
        [1.0, 0.0, 0.0],
        [1.0, 0.0, 0.0],
    ]


def test_whoever_waits_for_a_large_folder_is_told_that_the_search_goes_on(tmp_path: Path) -> None:
    a_folder(tmp_path)
    for number in range(2000):
        (tmp_path / "dog" / "big" / f"more {number}.png").touch()
    told: list[bool] = []
    open_dataset(Data.parse({"images": {"path": str(tmp_path), "size": 4}}), 0, {}, alive=lambda: told.append(True))
    assert len(told) == 1 + 1 + 3, "once in each folder, and once more for every thousand entries"


def test_the_shorter_side_is_scaled_and_the_middle_cut_out_unless_both_are_to_be_stretched(tmp_path: Path) -> None:
    wide = Image.new("L", (24, 8), 0)
    wide.paste(255, (8, 0, 16, 8))
    (tmp_path / "a").mkdir()
    wide.save(tmp_path / "a" / "wide.png")
    ids = np.zeros(1, np.int64)
    cropped, _ = opened(tmp_path, size=8, channels=1).fetch(ids)
    stretched, _ = opened(tmp_path, size=8, channels=1, fit="stretch").fetch(ids)
    assert (cropped == 1).all()
    assert stretched[0, 0, [0, 3, 7], 0].tolist() == [0.0, 1.0, 0.0]


def test_a_picture_is_turned_upright(tmp_path: Path) -> None:
    top_left = Image.new("L", (8, 8), 0)
    top_left.paste(255, (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    (tmp_path / "a").mkdir()
    top_left.save(tmp_path / "a" / "turned.png", exif=exif)
    pixels, _ = opened(tmp_path, size=8, channels=1).fetch(np.zeros(1, np.int64))
    assert pixels[0, [0, 0, 7, 7], [0, 7, 0, 7], 0].tolist() == [0.0, 1.0, 0.0, 0.0]


def test_every_file_that_is_no_picture_is_named_with_its_reason(tmp_path: Path) -> None:
    root = a_folder(tmp_path)
    whole = BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "PNG")
    (root / "cat" / "1.png").write_bytes(whole.getvalue()[:500])
    (root / "dog" / "big" / "2.png").write_text("<html>404</html>")
    with pytest.raises(BadSamples) as caught:
        opened(root).fetch(np.asarray([5, 0, 1, 5]))
    assert [(bad.index, bad.where) for bad in caught.value.bad] == [(1, "cat/1.png"), (5, "dog/big/2.png")]
    assert caught.value.bad[1].reason == "is no picture of a known format"
    assert str(caught.value).startswith(
        "spec.data.images: cat/1.png is no readable picture: OSError: image file is trunc"
    )
    assert str(caught.value).endswith(
        ", and 1 more; mend the data, or let spec.dataQuality.badSamples: skip leave such samples out"
    )


def test_a_jpeg_that_is_decoded_at_a_part_of_its_size_is_still_the_whole_picture(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 256, dtype=np.uint8), (256, 256))
    (tmp_path / "a").mkdir()
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "a" / "ramp.jpg", quality=95)
    pixels, _ = opened(tmp_path, size=16, channels=1).fetch(np.zeros(1, np.int64))
    expected = ramp.reshape(16, 16, 16, 16).mean(axis=(1, 3)) / 255
    assert np.abs(pixels[0, :, :, 0] - expected).max() < 0.02


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda root: None, "is no folder in the pod"),
        (lambda root: root.mkdir(), "has no folders; give each class a folder of its pictures"),
        (lambda root: (root / "empty").mkdir(parents=True), "/pictures/empty holds no picture, of .bmp, .jpeg"),
    ],
)
def test_folders_without_pictures_are_refused(tmp_path: Path, make: Any, says: str) -> None:
    make(tmp_path / "pictures")
    with pytest.raises(ConfigError, match=rf"^spec\.data\.images\.path: .*{says}"):
        opened(tmp_path / "pictures")


def test_other_sizes_and_other_pictures_are_other_data(tmp_path: Path) -> None:
    def fingerprint(root: Path, **more: Any) -> str:
        return open_samples(Data.parse({"images": {"path": str(root), "size": 4, **more}}), {})[1].fingerprint

    first, second = a_folder(tmp_path / "1"), a_folder(tmp_path / "2")
    assert fingerprint(first) == fingerprint(second)
    picture(second / "dog" / "big" / "0.png", (0, 1, 255), (16, 8))
    assert (
        len({fingerprint(first), fingerprint(second), fingerprint(first, size=8), fingerprint(first, channels=1)}) == 4
    )
