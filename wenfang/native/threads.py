"""The threads that share the work of torch and of our own kernels."""

import ctypes

_PAUSE_SOFT = 1
"""OpenMP's name for letting go of what can be made again (OpenMP 5.0, section 3.2.43)."""


def release_threads() -> None:
    """End the threads that OpenMP keeps for the calling thread; its next parallel work makes new ones.

    While a process has more of them than processors, OpenMP puts all to sleep between two pieces of work, and waking
    them takes an engine's steps some 5% longer (docs/log.md, 2026-11-26).
    """
    release = getattr(ctypes.CDLL(None), "omp_pause_resource_all", None)
    if release is not None:  # torch may have been built with another kind of threads.
        release(_PAUSE_SOFT)
