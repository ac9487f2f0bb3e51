"""What a computation would take, found by running it on tensors without memory.

The code that is traced is the code that will run, so a forecast holds for every mixer and every way of training alike.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Trace(TorchDispatchMode):
    """Counts bytes, operations and floating-point operations while it is active.

    Matrix products and attention count; pointwise work does not. Causal attention counts half.
    """

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.live_bytes = 0
        """Memory of the tensors that exist now."""
        self.peak_bytes = 0
        """The most that existed at one time."""
        self.operations = 0
        """Kernels started; views are none."""
        self.flops = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if operation is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1  # A number read from a tensor; which one changes no size.
        kwargs = kwargs or {}
        result = operation(*args, **kwargs)
        self.operations += not operation.is_view
        self.flops += _flops(operation, args, kwargs, result)
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._meet(value.untyped_storage())
        return result

    def take_peak(self) -> int:
        """The most bytes that existed at one time since this was last called."""
        peak, self.peak_bytes = self.peak_bytes, self.live_bytes
        return peak

    def _meet(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._part, key, size)

    def _part(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live_bytes -= size


@contextmanager
def tracing() -> Iterator[Trace]:
    """Within the block tensors have shapes and no memory; the trace says what they would have taken."""
    with FakeTensorMode(allow_non_fake_inputs=True), Trace() as trace:
        yield trace


def _flops(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    counter = _OWN.get(str(operation._overloadpacket))
    if counter is not None:
        return counter(args)
    known: Callable[..., int] | None = flop_registry.get(operation._overloadpacket)
    return known(*args, **kwargs, out_val=result) if known is not None else 0


def _attention(args: tuple[Any, ...]) -> int:
    """Scores and context of our kernel, whose queries see what is before them."""
    B, H, T, K = args[0].shape
    return 2 * B * H * T * T * K


def _sdpa(args: tuple[Any, ...]) -> int:
    """`_scaled_dot_product_flash_attention_for_cpu(q, k, v, dropout, is_causal)`."""
    B, H, T, K = args[0].shape
    causal = len(args) > 4 and bool(args[4])
    return (2 if causal else 4) * B * H * T * args[1].shape[2] * K


def _sdpa_backward(args: tuple[Any, ...]) -> int:
    """`…_backward(gradient, q, k, v, out, logsumexp, dropout, is_causal)`: five products for the forward's two."""
    B, H, T, K = args[1].shape
    return (5 if args[7] else 10) * B * H * T * args[2].shape[2] * K


def _grouped(args: tuple[Any, ...]) -> int:
    """`grouped_matmul(x_NI, w_EIO, counts)` and `grouped_outer(x_NI, g_NO, counts)`."""
    rows, inner = args[0].shape
    return 2 * rows * inner * int(args[1].shape[-1])


_OWN: dict[str, Callable[[tuple[Any, ...]], int]] = {
    "wenfang.attention": _attention,
    "wenfang.attention_backward": lambda args: 5 * _attention(args) // 2,
    "wenfang.grouped_matmul": _grouped,
    "wenfang.grouped_outer": _grouped,
    "aten._scaled_dot_product_flash_attention_for_cpu": _sdpa,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": _sdpa_backward,
}
"""What torch's own table lacks."""
