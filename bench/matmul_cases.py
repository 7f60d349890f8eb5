"""The products that `opaq bench matmul` measures: ours, PyTorch's, shapes and dtypes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch

import opaq
from opaq import extern_kernels as kernels

from .device import Tensors


def random(*sizes: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> Callable[[], Tensors]:
    return lambda: [torch.randn(*size, device="cuda").to(dtype) for size in sizes]


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], Tensors]
    aten: Callable[..., Any]
    op: opaq.Op
    more: tuple[Any, ...] = ()  # arguments of the op after the tensors
    tf32: bool = False

    def call(self, *operands: Any) -> Any:
        return self.op(*operands, *self.more)


@functools.cache
def linear_tf32() -> opaq.Op:
    op = opaq.op(
        "opaq_bench::linear_tf32(Tensor x, Tensor weight) -> (Tensor y)",
        outputs=opaq.tensor("x.size(0), weight.size(0)", dtype="x.dtype"),
    )
    return op.cublaslt(a="x", b="weight.t()", d="y", compute="tf32", algorithms=8)


def aten_scaled(scale: torch.Tensor) -> Callable[..., torch.Tensor]:
    whole = torch.nn.functional.ScalingType.TensorWise
    return lambda x, w: torch.nn.functional.scaled_mm(x, w.t(), scale, whole, scale, whole)


def linear(*operands: Any) -> torch.Tensor:
    return torch.nn.functional.linear(*operands)


def of_linear(m: int, n: int, k: int, dtype: torch.dtype) -> Case:
    name = f"linear {m}x{n}x{k} {str(dtype).removeprefix('torch.')}"
    make = random((m, k), (n, k), dtype=dtype)
    return Case(name, make, linear, kernels.linear, (None,))


def cases() -> list[Case]:
    """Decode, prefill, training, batches, odd sizes: 202 products."""
    llama = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]
    small = [(2304, 768), (768, 3072), (896, 4864), (5120, 1280)]
    odd = [(1000, 333), (513, 2050), (4608, 1152)]
    rows = [1, 4, 8, 16, 32, 64, 128, 256, 512, 2048, 4096, 8192]
    found = [of_linear(m, n, k, torch.bfloat16) for n, k in [*llama, *small, *odd] for m in rows]
    found += [of_linear(m, 128256, 4096, torch.bfloat16) for m in (1, 8, 16, 64)]
    for dtype in (torch.float16, torch.float32):
        found += [of_linear(m, 4096, 4096, dtype) for m in (1, 16, 64, 512, 4096)]
    tf32 = linear_tf32()
    for m in (16, 64, 512, 4096):
        make = random((m, 4096), (4096, 4096), dtype=torch.float32)
        found.append(Case(f"linear {m}x4096x4096 tf32", make, linear, tf32, tf32=True))
    for n, k in [*llama, *small[:2]]:  # gradients
        for m in (1024, 4096, 8192):
            grad = random((m, n), (n, k))
            found.append(Case(f"grad_x {m}x{k}x{n}", grad, torch.mm, kernels.linear_grad_x))
            both = random((m, n), (m, k))
            found.append(
                Case(
                    f"grad_weight {n}x{k}x{m}",
                    both,
                    lambda grad, x: torch.mm(grad.t(), x),
                    kernels.linear_grad_weight,
                )
            )
    for batch, m, n, k in [
        (8, 64, 64, 64),
        (64, 128, 128, 64),
        (256, 1, 2048, 128),
        (32, 512, 512, 128),
        (16, 1024, 1024, 64),
        (4, 2048, 2048, 512),
        (128, 33, 65, 127),
    ]:
        make = random((batch, m, k), (batch, k, n))
        found.append(Case(f"bmm {batch} {m}x{n}x{k}", make, torch.bmm, kernels.bmm))
    one = torch.ones(1, device="cuda")
    for n, k in [(4096, 4096), (28672, 4096), (4096, 14336)]:
        for m in (16, 64, 4096):
            make = random((m, k), (n, k), dtype=torch.float8_e4m3fn)
            name = f"scaled_linear {m}x{n}x{k} float8"
            more = (one, one, None)
            found.append(Case(name, make, aten_scaled(one), kernels.scaled_linear, more))
    return found
