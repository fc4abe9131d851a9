"""Pictures in folders, one for each class: found once, decoded as their samples are read."""

import io
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from capstan_runtime.contract.data import Images
from capstan_runtime.contract.env import host_path
from capstan_runtime.data.fingerprint import fingerprint_of_files
from capstan_runtime.data.spec import Array, BadSample, BadSamples, DataSpec, Ids, Samples
from capstan_runtime.errors import ConfigError

_FIELD = "spec.data.images"
_ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_MODES = {1: "L", 3: "RGB"}
_MOST_THREADS = 32
_SIGN_OF_LIFE_ENTRIES = 1000
"""A network volume lists and sizes as many in a second or ten."""


@dataclass(frozen=True)
class _PictureSamples:
    root: Path
    files: tuple[str, ...]
    """Paths in `root`, sorted."""
    labels: Array
    """[N] int32."""
    config: Images

    def __len__(self) -> int:
        return len(self.files)

    def fetch(self, ids: Ids) -> tuple[Array, Array]:
        size, channels = self.config.size, self.config.channels
        pixels = np.empty((len(ids), size, size, channels), np.float32)
        bad: dict[int, BadSample] = {}

        def fill(row: int) -> None:
            sample = int(ids[row])
            try:
                pixels[row] = _decoded(self.root / self.files[sample], self.config)
            except _Undecodable as error:
                bad[sample] = BadSample(sample, self.files[sample], str(error))

        for _ in self._threads.map(fill, range(len(ids))):
            pass
        if bad:
            raise BadSamples(_FIELD, [bad[sample] for sample in sorted(bad)])
        pixels /= np.float32(255.0)
        return pixels, self.labels[ids]

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        """Pillow lets go of Python's lock while it decodes and resizes. As many as the pod has cores: its libraries are
        told in OMP_NUM_THREADS, and the kernel where it is pinned."""
        cores = int(os.environ.get("OMP_NUM_THREADS") or 0) or len(os.sched_getaffinity(0))
        return ThreadPoolExecutor(min(cores, _MOST_THREADS), thread_name_prefix="decode")


class _Undecodable(Exception):
    """Why a file is no picture."""


def open_images(
    config: Images, environ: Mapping[str, str], alive: Callable[[], None] = lambda: None
) -> tuple[Samples, DataSpec]:
    """Pictures [size, size, channels] in [0, 1], and the class of the folder that each is in.

    Only names and sizes are read here, and the beginnings of 64 files for the fingerprint. `alive` is called for every
    class and every thousand files.
    """
    root = Path(host_path(config.path, environ))
    if not root.is_dir():
        raise ConfigError(f"{_FIELD}.path: {config.path} is no folder in the pod; mount it, or correct the path")
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise ConfigError(f"{_FIELD}.path: {config.path} has no folders; give each class a folder of its pictures")
    listing: list[tuple[str, int]] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(_pictures_below(root, name, alive))
        if not found:
            raise ConfigError(
                f"{_FIELD}.path: {config.path}/{name} holds no picture, of {', '.join(_ENDINGS)}; fill or remove it"
            )
        listing += found
        labels += [label] * len(found)
    label_ids = np.asarray(labels, np.int32)
    spec = DataSpec(
        kind="image",
        input_shape=(config.size, config.size, config.channels),
        outputs=len(classes),
        fingerprint=fingerprint_of_files(root, listing, "images", config.size, config.channels, config.fit),
    )
    return _PictureSamples(root, tuple(path for path, _ in listing), label_ids, config), spec


def _pictures_below(root: Path, name: str, alive: Callable[[], None]) -> list[tuple[str, int]]:
    """(path in `root`, bytes) of each."""
    found = []
    folders = [name]
    while folders:
        folder = folders.pop()
        with os.scandir(root / folder) as entries:
            for number, entry in enumerate(entries):
                if number % _SIGN_OF_LIFE_ENTRIES == 0:
                    alive()
                path = f"{folder}/{entry.name}"
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif entry.name.lower().endswith(_ENDINGS) and entry.is_file():
                    found.append((path, entry.stat().st_size))
    return found


def _decoded(path: Path, config: Images) -> Array:
    """[size, size, channels] uint8. Raises _Undecodable for whatever is wrong with the file's content, OSError of the
    storage as it is."""
    try:
        content = path.read_bytes()
    except PermissionError as error:
        raise _Undecodable("may not be read by this user") from error
    try:
        with Image.open(io.BytesIO(content)) as picture:
            upright = ImageOps.exif_transpose(_drafted(picture, config))
            plain = upright.convert(_MODES[config.channels])
        size = (config.size, config.size)
        if config.fit == "crop":
            plain = ImageOps.fit(plain, size, Image.Resampling.BILINEAR)
        else:
            plain = plain.resize(size, Image.Resampling.BILINEAR)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:  # its message has an address in it, another one each time
        raise _Undecodable("is no picture of a known format") from error
    except Exception as error:  # a decoder of pictures stumbles in many ways: OSError, SyntaxError, struct.error, …
        told = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise _Undecodable(f"is no readable picture: {told}") from error
    return np.asarray(plain).reshape(config.size, config.size, config.channels)


def _drafted(picture: Image.Image, config: Images) -> Image.Image:
    """JPEG can be decoded at half, a quarter or an eighth of its size, at least that wanted, which takes less time."""
    picture.draft(_MODES[config.channels], (config.size, config.size))
    return picture
