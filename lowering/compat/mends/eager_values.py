"""What eager mode gave to calls that write, which torch records in traced graphs."""

from __future__ import annotations

from typing import Any

from torch._higher_order_ops.auto_functionalize import auto_functionalized, auto_functionalized_v2
from torch.fx.experimental import proxy_tensor


def record_of_writes() -> None:
    """Has a functional call of a writing op keep its arguments as eager had them, which
    lowering/copies.py compares with the graph. torch (2.11 to 2.15) does so unless the op has the
    tag flexible_layout or needs_fixed_stride_order, which say that strides may differ; memory that
    is shared must not.
    """
    original = proxy_tensor._should_save_eager_input_vals

    def _should_save_eager_input_vals(target: Any, args_kwargs: Any = None) -> bool:
        writes = target in (auto_functionalized, auto_functionalized_v2)
        return writes or original(target, args_kwargs)

    proxy_tensor._should_save_eager_input_vals = _should_save_eager_input_vals
