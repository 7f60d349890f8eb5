"""Cross-entropy with class indices, with its gradient: declaration and reference.

cross_entropy(logits, target, ignore_index=-100) -> (loss, lse). logits: [N, V], floating, unit
stride along V; target: [N], int64. loss: [N], 0 where target == ignore_index, NaN where a target
lies outside [0, V); lse: [N], log(sum(exp(logits))). Both float32 (float64 for float64 logits) and
both differentiable (lse for a z-loss). The gradient reads the logits once more and keeps no [N, V]
tensor beside them; in a compiled graph it adds another gradient of the logits, where there is one.
"""

import torch

import opaq

FLOAT = "float64 if logits.dtype == float64 else float32"

cross_entropy = opaq.op(
    "opaq_kernels::cross_entropy(Tensor logits, Tensor target, int ignore_index=-100) "
    "-> (Tensor loss, Tensor lse)",
    outputs={
        "loss": opaq.tensor("logits.size(0)", dtype=FLOAT),
        "lse": opaq.tensor("logits.size(0)", dtype=FLOAT),
    },
)
cross_entropy_backward = opaq.op(
    "opaq_kernels::cross_entropy_backward(Tensor grad_loss, Tensor grad_lse, Tensor logits, "
    "Tensor target, Tensor lse, int ignore_index, Tensor? added=None) "
    "-> (Tensor grad_logits)",
    outputs=opaq.like("logits", may_overwrite=True),
    accumulates="added",
)


def requires(*dtypes: str) -> list[str]:
    return [
        " or ".join(f"logits.dtype == {dtype}" for dtype in dtypes),
        "logits.dim() == 2 and target.dim() == 1",
        "target.dtype == int64",
        "target.size(0) == logits.size(0)",
        "logits.stride(1) == 1 or logits.size(1) == 1",
    ]


def _requires_backward(float_type: str) -> list[str]:
    names = ("grad_loss", "grad_lse", "lse")
    return [
        *(f"{name}.dtype == {float_type}" for name in names),
        *(f"{name}.numel() == logits.size(0)" for name in names),
    ]


# A block of 1 to 16 warps computes a row; a thread has four packs of 16 bytes at a time.
_THREADS = "max(32, min(512, next_power_of_2(ceil_div(logits.size(1) * logits.itemsize, 4 * 16))))"


def _declare_cuda(
    op: opaq.Op, kernel: str, args: str, requires: list[str], *more: str, name: str = "cuda"
) -> None:
    """more: template arguments after the number of threads."""
    op.cuda(
        name=name,
        source=opaq.file("cross_entropy.cu"),
        entry=f"{kernel}<{', '.join(['{logits.dtype}', f'{{{_THREADS}}}', *more])}>",
        grid="logits.size(0)",
        block=_THREADS,
        args=args,
        requires=[*requires, "logits.size(1) < 2147483648"],
    )


CUDA_DTYPES = ("float32", "float16", "bfloat16")
_ROWS = "logits.stride(0), target.stride(0)"
_ADDED = "added.dtype == logits.dtype and added.shape == logits.shape"
_FORWARD_ARGS = f"logits.size(1), {_ROWS}, ignore_index"
_BACKWARD_ARGS = f"logits.size(1), {_ROWS}, grad_loss.stride(0), grad_lse.stride(0), ignore_index"

_declare_cuda(
    cross_entropy,
    "cross_entropy",
    f"loss, lse, logits, target, {_FORWARD_ARGS}",
    requires(*CUDA_DTYPES),
)
for _name, _adds, _condition in [
    ("cuda", "false", "not defined(added)"),
    ("cuda:added", "true", f"defined(added) and {_ADDED}"),
]:
    _declare_cuda(
        cross_entropy_backward,
        "cross_entropy_backward",
        f"grad_logits, grad_loss, grad_lse, logits, added, target, lse, {_BACKWARD_ARGS}",
        [*requires(*CUDA_DTYPES), *_requires_backward("float32"), _condition],
        _adds,
        name=_name,
    )
cross_entropy.cpu(
    source=opaq.file("cross_entropy.cpp"),
    entry="cross_entropy<{logits.dtype}>",
    args=f"loss, lse, logits, target, logits.size(0), {_FORWARD_ARGS}",
    requires=requires("float32", "float64"),
)
cross_entropy_backward.cpu(
    source=opaq.file("cross_entropy.cpp"),
    entry="cross_entropy_backward<{logits.dtype}>",
    args=f"grad_logits, grad_loss, grad_lse, logits, added, target, lse, logits.size(0), "
    f"{_BACKWARD_ARGS}",
    requires=[
        *requires("float32", "float64"),
        *_requires_backward("logits.dtype"),
        f"not defined(added) or {_ADDED}",
    ],
)


def safe_index(
    target: torch.Tensor, classes: int, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(class index that is safe to gather with, whether the row counts, whether the index is
    invalid)
    """
    counts = target != ignore_index
    outside = counts & ((target < 0) | (target >= classes))
    return torch.where(counts & ~outside, target, 0), counts, outside


@cross_entropy.reference
def cross_entropy_reference(
    logits: torch.Tensor, target: torch.Tensor, ignore_index: int = -100
) -> tuple[torch.Tensor, torch.Tensor]:
    if logits.dim() != 2 or target.shape != logits.shape[:1]:
        raise ValueError(
            f"cross_entropy: logits have shape {tuple(logits.shape)} and target "
            f"{tuple(target.shape)}; expected [N, V] and [N]: "
            "flatten the leading dimensions first"
        )
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    index, counts, outside = safe_index(target, logits.size(1), ignore_index)
    lse = torch.logsumexp(wide, 1)
    loss = torch.where(counts, lse - wide.gather(1, index.unsqueeze(1)).squeeze(1), 0)
    return torch.where(outside, torch.nan, loss), lse


@cross_entropy_backward.reference
def cross_entropy_backward_reference(
    grad_loss: torch.Tensor,
    grad_lse: torch.Tensor,
    logits: torch.Tensor,
    target: torch.Tensor,
    lse: torch.Tensor,
    ignore_index: int,
    added: torch.Tensor | None = None,
) -> torch.Tensor:
    index, counts, outside = safe_index(target, logits.size(1), ignore_index)
    at_target = torch.where(outside, torch.nan, torch.where(counts, grad_loss, 0))
    grad = (logits.to(lse.dtype) - lse.unsqueeze(1)).exp() * (at_target + grad_lse).unsqueeze(1)
    grad = grad.scatter_add(1, index.unsqueeze(1), torch.where(counts, -at_target, 0).unsqueeze(1))
    return (grad if added is None else grad + added).to(logits.dtype)


cross_entropy.backward("opaq_kernels::cross_entropy_backward")
