"""MNIST from its official files: gzipped idx in a folder ``mnist`` of the folder that ``BILEVEL_DATA`` names."""

import gzip
import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bilevel.data.errors import DataError

VARIABLE = "BILEVEL_DATA"
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
        ``BILEVEL_DATA`` is not set, or a file is missing, no idx file or too small.
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
        raise DataError(f"{VARIABLE} must name the folder of the data sets, one of them mnist, but it is not set")
    folder = Path(root) / "mnist"
    if not folder.is_dir():
        raise DataError(f"{folder}: expected the folder of MNIST's four files, but there is none")
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
