"""Cross-entropy of logits with a softcap, where the capped logits are a result, too.

cross_entropy_and_capped(logits, target, softcap, ignore_index=-100, label_smoothing=0.0,
    z_loss=0.0) -> (loss, lse, capped)

logits, target, ignore_index, label_smoothing, z_loss, loss, lse: as of cross_entropy
softcap: above 0 (Gemma 2, arXiv:2408.00118, with 30)
capped: [N, V], of the logits' dtype: softcap * tanh(logits / softcap)

All three are differentiable. Forward, the logits are read once; backward, once more, along with the
gradient of the capped logits. cross_entropy_and_capped_op is the op, with lse_low as of
cross_entropy_op.
"""

import torch

import opaq

from .cross_entropy import (
    FLOAT,
    capped,
    cross_entropy_backward_reference,
    cross_entropy_reference,
    declare_backward,
    declare_forward,
    gradient_like,
)

_NUMBERS = "float softcap, int ignore_index=-100, float label_smoothing=0.0, float z_loss=0.0"

cross_entropy_and_capped_op = opaq.op(
    f"opaq_kernels::cross_entropy_and_capped(Tensor logits, Tensor target, {_NUMBERS}) "
    "-> (Tensor loss, Tensor lse, Tensor lse_low, Tensor capped)",
    outputs={
        **dict.fromkeys(("loss", "lse", "lse_low"), opaq.tensor("logits.size(0)", dtype=FLOAT)),
        "capped": opaq.like("logits"),
    },
)
cross_entropy_and_capped_backward = opaq.op(
    "opaq_kernels::cross_entropy_and_capped_backward(Tensor grad_loss, Tensor grad_lse, "
    "Tensor? grad_capped, Tensor logits, Tensor target, Tensor lse, Tensor lse_low, "
    f"{_NUMBERS}) -> (Tensor grad_logits)",
    outputs=gradient_like("logits"),
    tags=torch.Tag.flexible_layout,
)

declare_forward(cross_entropy_and_capped_op, "capped", "softcap > 0")
declare_backward(cross_entropy_and_capped_backward, "grad_capped", "kOfCappedLogits", "softcap > 0")


def _check_softcap(where: str, softcap: float) -> None:
    if not softcap > 0:
        raise ValueError(
            f"{where}: got softcap={softcap}; expected a number above 0: without a cap, call "
            "cross_entropy"
        )


@cross_entropy_and_capped_op.reference
def cross_entropy_and_capped_reference(
    logits: torch.Tensor,
    target: torch.Tensor,
    softcap: float,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    _check_softcap("cross_entropy_and_capped", softcap)
    losses = cross_entropy_reference(logits, target, ignore_index, label_smoothing, z_loss, softcap)
    return *losses, capped(logits, softcap).to(logits.dtype)


@cross_entropy_and_capped_backward.reference
def cross_entropy_and_capped_backward_reference(
    grad_loss: torch.Tensor,
    grad_lse: torch.Tensor,
    grad_capped: torch.Tensor | None,
    logits: torch.Tensor,
    target: torch.Tensor,
    lse: torch.Tensor,
    lse_low: torch.Tensor,
    softcap: float,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> torch.Tensor:
    _check_softcap("cross_entropy_and_capped_backward", softcap)
    return cross_entropy_backward_reference(
        grad_loss,
        grad_lse,
        logits,
        target,
        lse,
        lse_low,
        ignore_index,
        None,
        label_smoothing,
        z_loss,
        softcap,
        grad_capped,
    )


cross_entropy_and_capped_op.backward(cross_entropy_and_capped_backward)


def cross_entropy_and_capped(
    logits: torch.Tensor,
    target: torch.Tensor,
    softcap: float,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, lse, capped) as said at the top of this file."""
    loss, lse, _, logits_capped = cross_entropy_and_capped_op(
        logits, target, softcap, ignore_index, label_smoothing, z_loss
    )
    return loss, lse, logits_capped
