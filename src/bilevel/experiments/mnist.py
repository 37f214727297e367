"""MNIST from its official files, gzipped idx.

They are in a folder ``mnist`` of the folder that ``BILEVEL_DATA`` names; where that is not set they are downloaded.
"""

import gzip
import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bilevel.data.download import cache_folder, download
from bilevel.data.errors import DataError

VARIABLE = "BILEVEL_DATA"
ORIGIN = "https://ossci-datasets.s3.amazonaws.com/mnist/"
SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
PIXELS = 28 * 28
CLASSES = 10
TYPE_BYTES = 8  # idx code of unsigned bytes


class Images(NamedTuple):
    """Images as rows of numbers between 0 and 1, and the digits on them."""

    X: Float[np.ndarray, "n 784"]
    y: Int[np.ndarray, " n"]


class Split(NamedTuple):
    """Disjoint sets of images."""

    train: Images
    valid: Images
    test: Images


def load_split(train: int, valid: int, test: int, seed: int) -> Split:
    """So many training and validation images of the official training set in random order, and test images.

    The test images are the first of the official test set.

    Raises
    ------
    DataError
        A file is missing, cannot be downloaded, is no idx file or too small.
    """
    folder = _folder()
    known, held_out = _images(folder, "train", train + valid), _images(folder, "t10k", test)
    order = np.random.default_rng(seed).permutation(len(known.y))
    first, second = order[:train], order[train : train + valid]
    return Split(
        Images(known.X[first], known.y[first]),
        Images(known.X[second], known.y[second]),
        Images(held_out.X[:test], held_out.y[:test]),
    )


def _folder() -> Path:
    root = os.environ.get(VARIABLE)
    if not root:
        return _downloaded(cache_folder() / "mnist")
    folder = Path(root) / "mnist"
    if not folder.is_dir():
        raise DataError(f"{folder}: expected the folder of MNIST's four files, but there is none")
    return folder


def _downloaded(folder: Path) -> Path:
    try:
        for name, sha256 in SHA256.items():
            download(ORIGIN + name, sha256, folder / name)
    except DataError as error:
        raise DataError(f"{error}; {VARIABLE} can name a folder of data sets, one of them mnist") from error
    return folder


def _images(folder: Path, name: str, least: int) -> Images:
    pixels = _read_idx(folder / f"{name}-images-idx3-ubyte.gz", dimensions=3)
    digits = _read_idx(folder / f"{name}-labels-idx1-ubyte.gz", dimensions=1)
    X = pixels.reshape(len(pixels), -1)
    if len(X) != len(digits) or len(X) < least or X.shape[1] != PIXELS or digits.max() >= CLASSES:
        raise DataError(
            f"{folder}: expected at least {least} {name} images of {PIXELS} pixels with as many digits, but found "
            f"{len(X)} of {X.shape[1]} with {len(digits)}"
        )
    return Images(X / np.float32(255), digits.astype(np.int32))


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Unsigned bytes of an idx file: two zeros, type, dimensions, the sizes as big-endian integers, the values."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: expected a file of MNIST, but there is none") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as gzip: {error}") from error
    start = 4 + 4 * dimensions
    if raw[:4] != bytes((0, 0, TYPE_BYTES, dimensions)) or len(raw) < start:
        raise DataError(f"{path}: expected an idx file of unsigned bytes in {dimensions} dimensions, but it is not")
    shape = struct.unpack(f">{dimensions}I", raw[4:start])
    values = np.frombuffer(raw, np.uint8, offset=start)
    if values.size != np.prod(shape) or not values.size:
        raise DataError(f"{path}: expected {np.prod(shape)} values, but it holds {values.size}")
    return values.reshape(shape)
