"""Kernels compiled for other processors than the one at hand."""

import ctypes
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
STAND_INS = {"avx512": ["avx512.h"], "amx": ["avx512.h", "amx.h"]}
"""Headers with loops for a processor's instructions."""


def compiled_for(processor: str, source: Path, folder: Path) -> ctypes.CDLL:
    """A kernel's library for a processor that GCC knows, or for one with loops for its instructions."""
    stand_ins = [option for name in STAND_INS.get(processor, ()) for option in ("-include", str(HERE / name))]
    options = stand_ins or [f"-march={processor}"]
    made = folder / f"{processor}.so"
    command = ["g++", "-O2", *options, "-Wno-psabi", "-std=c++17", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run([*command, str(source), "-o", str(made)], check=True, capture_output=True)
    return ctypes.CDLL(str(made))
