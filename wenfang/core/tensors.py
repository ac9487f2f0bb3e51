"""Writing tensors to disk, where a refusal of the operating system is told as one."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


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
