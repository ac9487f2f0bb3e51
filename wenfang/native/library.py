"""C++ sources into loaded libraries: compiled on first use, kept in the user's cache folder."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from wenfang.core.hardware import cache_folder, detect
from wenfang.core.language import say

T = TypeVar("T")

# Products and sums are fused where a source says so: left to the compiler, the same line would round in two ways. Sums
# are added in the order written: another takes more registers than there are.
EXACT = ("-ffp-contract=off", "-fno-tree-reassoc")
FLAGS = ("-O3", "-march=native", *EXACT, "-std=c++17", "-fopenmp", "-shared", "-fPIC")


@functools.cache
def load(source: Path) -> ctypes.CDLL | None:
    """The library made from one C++ file; None, with a warning, where the compiler is missing or refuses the file.

    The result is kept under `$XDG_CACHE_HOME/wenfang/native` by a hash of the source, the headers beside it, flags,
    compiler and processor: one home may serve several machines, and virtual ones often give theirs the same name.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return None  # Training says so, together with what else needs a compiler.
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    sources = [path.read_bytes() for path in (source, *sorted(source.parent.glob("*.h")))]
    facts = (sources, FLAGS, compiler, version, detect().processor, detect().instructions)
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    library = cache_folder() / "native" / f"{source.stem}-{key}.so"
    if not library.exists():
        refused = _compile(compiler, source, library)
        if refused:
            warnings.warn(
                say(
                    zh=f"{source.name} 無法編譯，改用較慢的運算：{refused}",
                    en=f"{source.name} could not be compiled; slower operators are used instead: {refused}",
                ),
                RuntimeWarning,
                stacklevel=2,
            )
            return None
    return ctypes.CDLL(str(library))


def constant_while_compiling(answer: Callable[[], T]) -> Callable[[], T]:
    """A function without arguments of which torch.compile takes the answer, instead of tracing how it is found. The
    function must not be a cache itself, which the compiler looks through.

    This is all that torch.compiler's assume_constant_result does besides loading the whole compiler, 1.5 s and 70 MB
    where nothing is compiled.
    """
    answer._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return answer


def _compile(compiler: str, source: Path, library: Path) -> str:
    """Make the library, whole or not at all, also when two processes do so; returns the compiler's complaint."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [compiler, *FLAGS, str(source), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            made.replace(library)
            return ""
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
