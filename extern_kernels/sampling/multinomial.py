"""Draws a class of each row of probabilities, as torch.multinomial does.

multinomial(probabilities, check=True) -> classes, the same as torch.multinomial(probabilities, 1)
gives with the same state of PyTorch's default generator of the device

probabilities: [rows, n] or [n], floating, at least 0; a row's sum is above 0 and need not be 1
classes: [rows, 1] or [1], int64

The class drawn is the one with the largest probability / e, where e are exponential random numbers,
of the shape and dtype of the probabilities, in row-major order (the exponential race; that is how
ATen's multinomial draws one sample). Probabilities that are negative, inf or nan, or a row of
zeros: RuntimeError on the CPU; on a GPU a failed assertion, as in PyTorch, which the next
synchronization reports. With check=False they are no error, and the class is that of
(probabilities / torch.empty_like(probabilities).exponential_()).argmax(-1, keepdim=True), as models
write the draw: the first one of a row of zeros, or the first nan.
"""

import torch

import opaq

from .. import rows

multinomial = opaq.op(
    "opaq_kernels::multinomial(Tensor probabilities, bool check=True) -> (Tensor classes)",
    outputs=opaq.tensor("probabilities.shape[:-1], 1", dtype="int64"),
    effects="random",
)

_ROWS = rows.count("probabilities")
_PACKS = "ceil_div(probabilities.size(-1) * probabilities.itemsize, 16)"
_RANKS = rows.sharing(_PACKS, 256 * 4)
_REQUIRES = [
    "probabilities.dim() == 1 or probabilities.dim() == 2",
    "probabilities.size(-1) > 0 and probabilities.size(-1) <= 1073741823",
]
_SCRATCH = {"numbers": opaq.exponential("probabilities.shape", dtype="probabilities.dtype")}

multinomial.cuda(
    source=opaq.file("multinomial.cu"),
    entry=f"multinomial<{{probabilities.dtype}}, 256, {{{_RANKS}}}>",
    grid=f"{_ROWS} * {_RANKS}",
    block=256,
    scratch=_SCRATCH,
    args="classes, probabilities, numbers, probabilities.size(-1), check",
    requires=[rows.one_of("probabilities", rows.CUDA_DTYPES), *_REQUIRES],
)
multinomial.cpu(
    source=opaq.file("multinomial.cpp"),
    entry="multinomial<{probabilities.dtype}>",
    scratch=_SCRATCH,
    args=f"classes, probabilities, numbers, {_ROWS}, probabilities.size(-1), check",
    requires=[rows.one_of("probabilities", rows.CPU_DTYPES), *_REQUIRES],
)


@multinomial.reference
def multinomial_reference(probabilities: torch.Tensor, check: bool = True) -> torch.Tensor:
    if probabilities.dim() not in (1, 2) or not probabilities.is_floating_point():
        raise ValueError(
            f"multinomial: probabilities are {probabilities.dtype} of shape "
            f"{tuple(probabilities.shape)}; expected [rows, classes] or [classes] of a "
            "floating-point dtype: flatten the leading dimensions"
        )
    probabilities = probabilities.contiguous()
    return torch.multinomial(probabilities, 1) if check else raced(probabilities)


def raced(probabilities: torch.Tensor) -> torch.Tensor:
    numbers = torch.empty_like(probabilities).exponential_()
    return (probabilities / numbers).argmax(-1, keepdim=True)
