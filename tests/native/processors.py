"""Kernels compiled for other processors than the one at hand."""

import ctypes
import subprocess
from pathlib import Path

STAND_INS = Path(__file__).with_name("avx512.h")


def compiled_for(processor: str, source: Path, folder: Path) -> ctypes.CDLL:
    """A kernel's library for a processor that GCC knows, or for `avx512` with loops for its instructions."""
    options = ["-include", str(STAND_INS)] if processor == "avx512" else [f"-march={processor}"]
    made = folder / "kernel.so"
    command = ["g++", "-O2", *options, "-Wno-psabi", "-std=c++17", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run([*command, str(source), "-o", str(made)], check=True, capture_output=True)
    return ctypes.CDLL(str(made))
