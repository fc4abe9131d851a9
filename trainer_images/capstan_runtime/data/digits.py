"""The UCI handwritten digits, out of the file that scikit-learn ships."""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from capstan_runtime.data.fingerprint import fingerprint_of
from capstan_runtime.data.spec import DataSpec, Rows, Samples
from capstan_runtime.errors import ConfigError

_FILE = Path("datasets", "data", "digits.csv.gz")
_BRIGHTEST = 16.0
"""Each pixel counts the set ones among 4 x 4 binary ones (Alpaydin and Kaynak, 1998)."""


def open_digits() -> tuple[Samples, DataSpec]:
    """1,797 grey images [8, 8, 1] scaled to [0, 1], ten classes.

    Reads the file itself: importing `sklearn.datasets` would add a second and 100 MB to every start.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ConfigError(
            "spec.data.digits: the package scikit-learn, which ships the digits, is not installed; "
            "use an image that has it, or spec.data.arrays"
        )
    path = Path(package.origin).parent / _FILE
    if not path.is_file():
        raise ConfigError(f"spec.data.digits: {path} is missing from scikit-learn; install scikit-learn 1.6 or newer")
    contents = gzip.decompress(path.read_bytes())
    table = np.fromstring(contents.replace(b"\n", b","), dtype=np.float32, sep=",").reshape(-1, 65)
    images = np.ascontiguousarray(table[:, :64] / np.float32(_BRIGHTEST)).reshape(-1, 8, 8, 1)
    spec = DataSpec(kind="image", input_shape=(8, 8, 1), outputs=10, fingerprint=fingerprint_of("digits", contents))
    return Rows(images, table[:, 64].astype(np.int32)), spec
