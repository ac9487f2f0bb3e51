"""native: kernels in C++ for what the processor can do better than torch's own operators.

Each is compiled once with the user's compiler and kept; where that cannot be, callers take torch's operators instead.
May import `core` only.
"""

from wenfang.native.attention import attention, can_attend
from wenfang.native.training import can_compute, cross_entropy_, silu_gate

__all__ = ["attention", "can_attend", "can_compute", "cross_entropy_", "silu_gate"]
