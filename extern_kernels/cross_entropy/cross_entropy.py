"""Cross-entropy with class indices, with its gradient: declaration, reference and function.

cross_entropy(logits, target, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, softcap=0.0)
    -> (loss, lse)

logits: [N, V], floating, unit stride along V
target: [N], int64
loss: [N], 0 where target == ignore_index, NaN where a target lies outside [0, V)
lse: [N], log(sum(exp(logits))), after the softcap

label_smoothing: from 0 to 1: the distribution to be predicted is 1 - label_smoothing at the target
    and label_smoothing / V more at each class, as in torch.nn.functional.cross_entropy (Szegedy et
    al. 2016, arXiv:1512.00567)
z_loss: at least 0: z_loss * lse^2 is added to the loss of each row that is not ignored (PaLM,
    Chowdhery et al. 2022, arXiv:2204.02311, with 1e-4; cross_entropy_with_logits of T5X)
softcap: above 0: the logits are softcap * tanh(logits / softcap) to begin with (Gemma 2,
    arXiv:2408.00118, with 30); 0: they are as given

loss and lse are float32 (float64 for float64 logits), and both are differentiable (lse for a z-loss
of your own). The gradient reads the logits once more and keeps no [N, V] tensor beside them; in a
compiled graph it adds another gradient of the logits, where there is one. Numbers out of range
raise ValueError.

cross_entropy_op is the op, with a third result, lse_low: [N], of lse's dtype, without a gradient:
what lse lacks by its rounding. cross_entropy_backward takes both: where logits are large, lse alone
says little of the sum.
"""

import math
from typing import Any

import torch

import opaq

FLOAT = "float64 if logits.dtype == float64 else float32"

EXTRAS = "float label_smoothing=0.0, float z_loss=0.0, float softcap=0.0"


def gradient_like(name: str) -> opaq.Output:
    """A gradient of the logits, in the memory of the tensor of this name where nothing else needs
    it. Where rows of that are longer in memory by less than 128 elements, such as those that
    Inductor pads, so are the gradient's: the matrix products that read it need aligned rows, too.
    """
    row, size = f"{name}.stride(0)", f"{name}.size(1)"
    strides = f"{row} if {size} <= {row} and {row} < {size} + 128 else {size}, 1"
    return opaq.like(name, strides=strides, may_overwrite=True)


cross_entropy_op = opaq.op(
    f"opaq_kernels::cross_entropy(Tensor logits, Tensor target, int ignore_index=-100, {EXTRAS}) "
    "-> (Tensor loss, Tensor lse, Tensor lse_low)",
    outputs=dict.fromkeys(("loss", "lse", "lse_low"), opaq.tensor("logits.size(0)", dtype=FLOAT)),
    tags=torch.Tag.flexible_layout,
)
cross_entropy_backward = opaq.op(
    "opaq_kernels::cross_entropy_backward(Tensor grad_loss, Tensor grad_lse, Tensor logits, "
    f"Tensor target, Tensor lse, Tensor lse_low, int ignore_index, Tensor? added=None, {EXTRAS}) "
    "-> (Tensor grad_logits)",
    outputs=gradient_like("logits"),
    accumulates="added",
    tags=torch.Tag.flexible_layout,
)


def requires(*dtypes: str) -> list[str]:
    return [
        " or ".join(f"logits.dtype == {dtype}" for dtype in dtypes),
        "logits.dim() == 2 and target.dim() == 1",
        "target.dtype == int64",
        "target.size(0) == logits.size(0)",
        "logits.stride(1) == 1 or logits.size(1) == 1",
        "label_smoothing >= 0 and label_smoothing <= 1",
        "z_loss >= 0 and z_loss < 1e30 and softcap >= 0 and softcap < 1e30",
    ]


# What a kernel is compiled for, as in extras.cuh and extras.h.
KIND = "2 if softcap != 0 else 1 if label_smoothing != 0 or z_loss != 0 else 0"
EXTRA_ARGS = "label_smoothing, z_loss, softcap"


CUDA_DTYPES = ("float32", "float16", "bfloat16")
_FORWARD_ARGS = f"logits.size(1), logits.stride(0), target.stride(0), ignore_index, {EXTRA_ARGS}"


def _requires_backward(float_type: str) -> list[str]:
    names = ("grad_loss", "grad_lse", "lse", "lse_low")
    return [
        *(f"{name}.dtype == {float_type}" for name in names),
        *(f"{name}.numel() == logits.size(0)" for name in names),
    ]


def _backward_args(kept: bool, added: str) -> str:
    """kept: see kept.py, where there is one gradient, of the mean."""
    grad_lse, strides = "grad_lse", "grad_loss.stride(0), grad_lse.stride(0)"
    before = "0, 0"
    if kept:
        grad_lse, strides, before = "0", "0, 0", "kept, counted"
    return (
        f"grad_logits, grad_loss, {grad_lse}, {added}, target, lse, lse_low, {before}, "
        "logits.size(0), logits.size(1), grad_logits.stride(0), logits.stride(0), "
        f"target.stride(0), {strides}, ignore_index, {EXTRA_ARGS}"
    )


# A block of 1 to 16 warps computes a row; a thread has four packs of 16 bytes at a time.
_THREADS = "max(32, min(512, next_power_of_2(ceil_div(logits.size(1) * logits.itemsize, 4 * 16))))"
# Blocks that compute kept gradients, as a rule to leave them as they are: to start one for each of
# 8192 rows takes 6 us on an H200, which has 264 of them at a time.
_KEPT_GRID = "min(1024, logits.size(0))"

REQUIRES_CUDA = [*requires(*CUDA_DTYPES), "logits.size(1) < 2147483648"]
REQUIRES_CPU = requires("float32", "float64")


def _cuda_launch(kernel: str, last: str, args: str) -> dict[str, Any]:
    """last: the last template arguments."""
    return {
        "source": opaq.file("cross_entropy.cu"),
        "entry": f"{kernel}<{{logits.dtype}}, {{{_THREADS}}}, {{{KIND}}}, {last}>",
        "grid": "logits.size(0)",
        "block": _THREADS,
        "args": args,
    }


def declare_forward(op: opaq.Op, capped: str, *conditions: str) -> None:
    """The kernels of an op that computes losses. capped: the result that is given the capped
    logits; "0": there is none."""
    outputs = f"loss, lse, lse_low, {capped}"
    last, args = "false" if capped == "0" else "true", f"{outputs}, logits, target, {_FORWARD_ARGS}"
    op.cuda(**_cuda_launch("cross_entropy", last, args), requires=[*REQUIRES_CUDA, *conditions])
    op.cpu(
        source=opaq.file("cross_entropy.cpp"),
        entry=f"cross_entropy<{{logits.dtype}}, {{{KIND}}}>",
        args=f"{outputs}, logits, target, logits.size(0), {_FORWARD_ARGS}",
        requires=[*REQUIRES_CPU, *conditions],
    )


def cuda_gradient(added: str, how: str, kept: bool = False) -> dict[str, Any]:
    """How the kernel of gradients is launched. added: the argument that is added to them. how: in
    which way, a constant of softmax.cuh."""
    args = _backward_args(kept, f"logits, {added}")
    last = f"{how}, {str(kept).lower()}"
    launch = _cuda_launch("cross_entropy_backward", last, args)
    return {**launch, "grid": _KEPT_GRID} if kept and how == "kNothing" else launch


def cpu_gradient(of_capped: str, of_logits: str, kept: bool = False) -> dict[str, Any]:
    """The same on the CPU. of_capped, of_logits: what is added, before the cap and after it."""
    return {
        "source": opaq.file("cross_entropy.cpp"),
        "entry": f"cross_entropy_backward<{{logits.dtype}}, {{{KIND}}}>",
        "args": _backward_args(kept, f"{of_capped}, logits, {of_logits}"),
    }


def ways_to_add(added: str, how: str) -> list[tuple[str, str, str]]:
    """(name, constant, condition) of the CUDA implementations, without and with what is added."""
    return [
        ("cuda", "kNothing", f"not defined({added})"),
        ("cuda:added", how, f"defined({added}) and {like_logits(added)}"),
    ]


def like_logits(name: str) -> str:
    return f"{name}.dtype == logits.dtype and {name}.shape == logits.shape"


def declare_backward(op: opaq.Op, added: str, last: str, *conditions: str) -> None:
    """Kernels of an op that computes gradients; added, last: as of cuda_gradient."""
    for name, how, condition in ways_to_add(added, last):
        op.cuda(
            name=name,
            **cuda_gradient(added, how),
            requires=[*REQUIRES_CUDA, *_requires_backward("float32"), condition, *conditions],
        )
    op.cpu(
        **cpu_gradient(*("0", added) if last == "kOfLogits" else (added, "0")),
        requires=[
            *REQUIRES_CPU,
            *_requires_backward("logits.dtype"),
            f"not defined({added}) or {like_logits(added)}",
            *conditions,
        ],
    )


declare_forward(cross_entropy_op, "0")
declare_backward(cross_entropy_backward, "added", "kOfLogits")


def safe_index(
    target: torch.Tensor, classes: int, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(class index that is safe to gather with, whether the row counts, whether the index is
    invalid)
    """
    counts = target != ignore_index
    outside = counts & ((target < 0) | (target >= classes))
    return torch.where(counts & ~outside, target, 0), counts, outside


def check_extras(where: str, label_smoothing: float, z_loss: float, softcap: float) -> None:
    """Raises ValueError for numbers out of range."""
    for name, value, fits, expected in (
        ("label_smoothing", label_smoothing, 0 <= label_smoothing <= 1, "a number from 0 to 1"),
        ("z_loss", z_loss, 0 <= z_loss < math.inf, "a number of at least 0; 0: no z-loss"),
        ("softcap", softcap, 0 <= softcap < math.inf, "a number of at least 0; 0: no softcap"),
    ):
        if not fits:
            raise ValueError(f"{where}: got {name}={value}; expected {expected}")


def capped(logits: torch.Tensor, softcap: float) -> torch.Tensor:
    """Logits as the loss sees them, at least float32."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return softcap * torch.tanh(wide / softcap) if softcap else wide


def gradient_of_rows(
    logits: torch.Tensor,
    probabilities: torch.Tensor,
    lse: torch.Tensor,
    on_loss: torch.Tensor,
    on_lse: torch.Tensor,
    index: torch.Tensor,
    counts: torch.Tensor,
    extras: tuple[float, float, float],
    grad_capped: torch.Tensor | None = None,
) -> torch.Tensor:
    """The gradient of on_loss * loss + on_lse * lse for the logits, and that of grad_capped * the
    capped logits. on_loss: [N] or one element."""
    label_smoothing, z_loss, softcap = extras
    on_loss = torch.where(counts, on_loss, 0)
    if z_loss:
        on_lse = on_lse + torch.where(counts, 2 * z_loss * lse * on_loss, 0)
    grad = probabilities * (on_loss + on_lse).unsqueeze(1)
    if label_smoothing:
        grad = grad - (on_loss * (label_smoothing / logits.size(1))).unsqueeze(1)
    at_target = (on_loss * (label_smoothing - 1)).unsqueeze(1)
    grad = grad.scatter_add(1, index.unsqueeze(1), at_target)
    if grad_capped is not None:
        grad = grad + grad_capped
    if softcap:
        grad = grad * (1 - torch.tanh(logits.to(lse.dtype) / softcap).square())
    return grad


@cross_entropy_op.reference
def cross_entropy_reference(
    logits: torch.Tensor,
    target: torch.Tensor,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if logits.dim() != 2 or target.shape != logits.shape[:1]:
        raise ValueError(
            f"cross_entropy: logits have shape {tuple(logits.shape)} and target "
            f"{tuple(target.shape)}; expected [N, V] and [N]: "
            "flatten the leading dimensions first"
        )
    check_extras("cross_entropy", label_smoothing, z_loss, softcap)
    wide = capped(logits, softcap)
    index, counts, outside = safe_index(target, logits.size(1), ignore_index)
    lse = torch.logsumexp(wide, 1)
    lse_low = torch.logsumexp(wide - lse.unsqueeze(1), 1)
    at_target = wide.gather(1, index.unsqueeze(1))
    loss = lse - at_target.squeeze(1) + lse_low
    if label_smoothing:
        # the mean of logits less that at the target, which does not cancel
        above = (wide - torch.where(at_target.isfinite(), at_target, 0)).mean(1)
        loss = torch.where(loss == torch.inf, loss, loss - label_smoothing * above)
    if z_loss:
        loss = loss + z_loss * lse.square()
    return torch.where(outside, torch.nan, torch.where(counts, loss, 0)), lse, lse_low


@cross_entropy_backward.reference
def cross_entropy_backward_reference(
    grad_loss: torch.Tensor,
    grad_lse: torch.Tensor,
    logits: torch.Tensor,
    target: torch.Tensor,
    lse: torch.Tensor,
    lse_low: torch.Tensor,
    ignore_index: int,
    added: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    grad_capped: torch.Tensor | None = None,
) -> torch.Tensor:
    check_extras("cross_entropy_backward", label_smoothing, z_loss, softcap)
    index, counts, outside = safe_index(target, logits.size(1), ignore_index)
    grad = gradient_of_rows(
        logits,
        (capped(logits, softcap) - lse.unsqueeze(1) - lse_low.unsqueeze(1)).exp(),
        lse,
        torch.where(outside, torch.nan, grad_loss),
        grad_lse,
        index,
        counts,
        (label_smoothing, z_loss, softcap),
        grad_capped,
    )
    return (grad if added is None else grad + added).to(logits.dtype)


cross_entropy_op.backward("opaq_kernels::cross_entropy_backward")


def cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, lse) of each row, as said at the top of this file."""
    loss, lse, _ = cross_entropy_op(logits, target, ignore_index, label_smoothing, z_loss, softcap)
    return loss, lse
