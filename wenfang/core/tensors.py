"""Tensors on disk: mapped piece by piece, and written so that what the operating system refuses is told as that."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def map_bytes(path: Path, begin: int, end: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    """Some bytes of a file: read when they are looked at, out of memory once nobody holds them; writing to them
    changes no file.

    Raises:
        OSError, ValueError: the file is not there, or has no such bytes.
    """
    if begin == end:
        return np.empty(0, np.uint8)
    return np.memmap(path, np.uint8, "c", begin, (end - begin,)).view(np.ndarray)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: the disk is full, the file too large or not allowed.
    """
    try:
        save_file(dict(tensors), path, dict(metadata))
    except SafetensorError as error:
        # The library has only text for what the system said; it ends in `(os error N)`.
        number = str(error).rpartition("(os error ")[2].partition(")")[0]
        code = int(number) if number.isdecimal() else 0
        raise OSError(code, os.strerror(code) if code else str(error), str(path)) from None
