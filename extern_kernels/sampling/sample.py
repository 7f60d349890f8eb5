"""Draws a token of each row of logits: temperature, top-k, top-p, min-p, in the order of
transformers' generate.

sample(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> tokens
sample_with_uniform(logits, uniform, ...) -> tokens
sample_multinomial(logits, ..., check=True) -> tokens
sampling_probabilities(logits, ...) -> probabilities

logits: [rows, classes], floating
uniform: [rows], float32 in [0, 1): the numbers to draw with, in place of PyTorch's generator
tokens: [rows], int64
probabilities: [rows, classes], float32 (float64 for float64 logits): what tokens are drawn from; 0
    for the classes that are left out

temperature: logits are divided by it; 0 is the limit, which leaves the largest logits alone
top_k: keeps the k largest logits and all that are equal to the smallest of them; 0: all
top_p: keeps, of these, the smallest set of most probable classes whose probability is at least
    top_p, so that the class that crosses top_p is kept. Of classes with equal logits the last ones
    are taken first, as after a stable ascending sort (Holtzman et al. 2020, arXiv:1904.09751)
min_p: keeps, of these, the classes that are at least min_p times as probable as the most probable
    one (Nguyen et al. 2024, arXiv:2407.01082)
row_temperature, row_top_k, row_top_p, row_min_p: [rows], float32 and int64 for row_top_k: the same
    for each row, in place of the numbers

A token is the first class at which the sum of the kept probabilities, in the order of classes,
passes a random number times their whole sum. A row with a NaN, with no logit above -inf, or with a
parameter of its own out of range has the token -1 and probabilities NaN. `sample` takes its numbers
from PyTorch's default generator of the device: torch.manual_seed decides them, and each replay of a
CUDA graph draws anew; for a generator of your own, give sample_with_uniform
torch.rand(rows, generator=...). Weights are summed as fixed point with 40 bits: results do not
depend on an order of sums, and a class of less than 2^-40 of the largest probability is not drawn.

`sample_multinomial` draws the token that torch.multinomial(sampling_probabilities(logits, ...), 1)
draws with the same state of the generator. That takes as many random numbers as there are logits,
so it is slower; where `sample` gives -1, it fails as multinomial.py has it, or gives the token 0
with check=False.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

import opaq

from .multinomial import raced

_PARAMETERS = (
    "float temperature=1.0, int top_k=0, float top_p=1.0, float min_p=0.0, "
    "Tensor? row_temperature=None, Tensor? row_top_k=None, Tensor? row_top_p=None, "
    "Tensor? row_min_p=None"
)
_WIDE = "float64 if logits.dtype == float64 else float32"
_TOKENS = opaq.tensor("logits.size(0)", dtype="int64")

sample = opaq.op(
    f"opaq_kernels::sample(Tensor logits, {_PARAMETERS}) -> (Tensor tokens)",
    outputs=_TOKENS,
    effects="random",
)
sample_with_uniform = opaq.op(
    f"opaq_kernels::sample_with_uniform(Tensor logits, Tensor uniform, {_PARAMETERS}) "
    "-> (Tensor tokens)",
    outputs=_TOKENS,
)
sample_multinomial = opaq.op(
    f"opaq_kernels::sample_multinomial(Tensor logits, {_PARAMETERS}, bool check=True) "
    "-> (Tensor tokens)",
    outputs=_TOKENS,
    effects="random",
)
sampling_probabilities = opaq.op(
    f"opaq_kernels::sampling_probabilities(Tensor logits, {_PARAMETERS}) -> (Tensor probabilities)",
    outputs=opaq.tensor("logits.shape", dtype=_WIDE),
)

_ROW_DTYPES = {
    "row_temperature": "float32",
    "row_top_k": "int64",
    "row_top_p": "float32",
    "row_min_p": "float32",
}
_REQUIRES = [
    "logits.dim() == 2",
    "logits.size(1) > 0",
    "logits.stride(1) == 1 or logits.size(1) == 1",
    "temperature >= 0 and top_k >= 0",
    "top_p >= 0 and top_p <= 1 and min_p >= 0 and min_p <= 1",
    *(
        f"not defined({name}) or {name}.dtype == {dtype} and {name}.dim() == 1 "
        f"and {name}.numel() == logits.size(0) and {name}.stride(0) == 1"
        for name, dtype in _ROW_DTYPES.items()
    ),
]
_UNIFORM = [
    "uniform.dtype == float32",
    "uniform.dim() == 1 and uniform.numel() == logits.size(0) and uniform.stride(0) == 1",
]
_VALUES = f"temperature, top_k, top_p, min_p, {', '.join(_ROW_DTYPES)}"

# A row is shared by a cluster of two large blocks, since of larger clusters fewer fit into a GPU at
# a time; where rows are few, of up to 8 small ones. A thread holds some of its packs of 16 bytes in
# shared memory, so that a block has less than 99 KiB, and reads the others again, from the L2
# cache.
_PACKS = "ceil_div(logits.size(1) * logits.itemsize + 16, 16)"
_FEW = "logits.size(0) <= 40"
_THREADS = f"(256 if {_FEW} else max(256, min(1024, next_power_of_2(ceil_div({_PACKS}, 8)))))"
_ENOUGH = f"next_power_of_2(ceil_div({_PACKS}, 4 * {_THREADS}))"
_RANKS = f"min(8 if {_FEW} else 2, {_ENOUGH})"
_HELD = f"ceil_div(ceil_div({_PACKS}, {_THREADS} // 32 * {_RANKS}), 32)"
_SLOTS = f"min(9, 4096 // {_THREADS}, {_HELD})"


def _declare(
    op: opaq.Op,
    kernel: str,
    result: str,
    given: str = "",
    *,
    scratch: opaq.Philox | opaq.Exponential | None = None,
    more: str = "",
    extra: Sequence[str] = (),
) -> None:
    """given: what a kernel gets beside the logits, an argument of the op or `scratch`.
    more: what it gets last."""
    drawn = {given: scratch} if scratch else None
    given = f"{given}, " if given else ""
    op.cuda(
        source=opaq.file("sample.cu"),
        entry=f"{kernel}<{{logits.dtype}}, {{{_THREADS}}}, {{{_RANKS}}}>",
        grid=f"logits.size(0) * {_RANKS}",
        block=_THREADS,
        shared=f"{_SLOTS} * {_THREADS} * 16",
        args=f"{result}, logits, {given}logits.size(1), logits.stride(0), {_SLOTS}, "
        f"{_VALUES}{more}",
        requires=[
            "logits.dtype == float32 or logits.dtype == float16 or logits.dtype == bfloat16",
            "logits.size(1) <= 4194304",
            *_REQUIRES,
            *extra,
        ],
        scratch=drawn,
    )
    op.cpu(
        source=opaq.file("sample.cpp"),
        entry=f"{kernel}<{{logits.dtype}}>",
        args=f"{result}, logits, {given}logits.size(0), logits.size(1), logits.stride(0), "
        f"{_VALUES}{more}",
        requires=[
            "logits.dtype == float32 or logits.dtype == float64",
            *_REQUIRES,
            *extra,
        ],
        scratch=drawn,
    )


_declare(sample, "sample", "tokens", "rng", scratch=opaq.philox())
_declare(sample_with_uniform, "sample_with_uniform", "tokens", "uniform", extra=_UNIFORM)
_declare(
    sample_multinomial,
    "sample_multinomial",
    "tokens",
    "numbers",
    scratch=opaq.exponential("logits.shape", dtype=_WIDE),
    more=", check",
)
_declare(sampling_probabilities, "sampling_probabilities", "probabilities")

# ---- meaning -------------------------------------------------------------------------------------


def _checked(op: str, logits: torch.Tensor, numbers: dict, of_rows: dict) -> dict:
    """The parameters as columns, [rows, 1]."""
    if logits.dim() != 2 or logits.size(1) == 0:
        raise ValueError(
            f"{op}: logits have shape {tuple(logits.shape)}; expected [rows, classes] with at "
            "least one class: flatten the leading dimensions, or take the last position first"
        )
    if not logits.is_floating_point():
        raise ValueError(f"{op}: logits are {logits.dtype}; expected a floating-point dtype")
    ranges = {
        "temperature": (math.inf, "a number from 0 on"),
        "top_k": (math.inf, "0, for all classes, or the number of classes to keep"),
        "top_p": (1.0, "a number from 0 to 1"),
        "min_p": (1.0, "a number from 0 to 1"),
    }
    columns = {}
    for name, (most, expected) in ranges.items():
        if not 0 <= numbers[name] <= most:
            raise ValueError(f"{op}: {name} is {numbers[name]}; expected {expected}")
        values = of_rows[f"row_{name}"]
        if values is None:
            values = logits.new_full(
                (logits.size(0),),
                numbers[name],
                dtype=torch.int64 if name == "top_k" else torch.float64,
            )
        elif values.shape != logits.shape[:1]:
            raise ValueError(
                f"{op}: row_{name} has shape {tuple(values.shape)}; expected "
                f"{tuple(logits.shape[:1])}, a value for each row of logits {tuple(logits.shape)}"
            )
        if values.is_floating_point() == (name == "top_k"):
            raise ValueError(
                f"{op}: row_{name} is {values.dtype}; expected {_ROW_DTYPES[f'row_{name}']}"
            )
        columns[name] = values.unsqueeze(1)
    return columns


def _probabilities(
    op: str,
    logits: torch.Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    *of_rows: torch.Tensor | None,
    **named: torch.Tensor | None,
) -> torch.Tensor:
    numbers = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    named = dict.fromkeys(_ROW_DTYPES) | dict(zip(_ROW_DTYPES, of_rows)) | named
    column = _checked(op, logits, numbers, named)
    classes = logits.size(1)
    wide = logits.double()
    largest = wide.amax(1, keepdim=True)
    valid = ~wide.isnan().any(1, keepdim=True) & (largest > -torch.inf)
    for name, most in (("temperature", 3.4e38), ("top_k", 2**62), ("top_p", 1), ("min_p", 1)):
        valid &= (column[name] >= 0) & (column[name] <= most)
    weight = torch.where(
        wide == largest,
        1.0,
        ((wide - largest) / column["temperature"].clamp(min=1e-300)).exp(),
    )
    ascending, index = torch.sort(wide, dim=1, stable=True)
    k = torch.where(column["top_k"] > 0, column["top_k"], classes).clamp(1, classes)
    least = ascending.gather(1, classes - k)
    descending = torch.where(ascending >= least, weight.gather(1, index), 0).flip(1)
    upto = descending.cumsum(1)
    keep = (upto - descending < column["top_p"].double() * upto[:, -1:]).flip(1)
    keep[:, -1:] = True
    keep |= column["top_p"] >= 1
    keep = torch.zeros_like(keep).scatter(1, index, keep)
    keep &= (wide >= least) & (weight >= column["min_p"])
    kept = torch.where(keep, weight, 0)
    found = torch.where(valid, kept / kept.sum(1, keepdim=True), torch.nan)
    return found.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)


def _drawn(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    upto = probabilities.double().cumsum(1)
    passed = upto <= uniform.double().unsqueeze(1) * upto[:, -1:]
    # The rounding of the last sums must not lead to a class that is left out.
    last = (probabilities > 0).int().cumsum(1).argmax(1)
    tokens = torch.minimum(passed.sum(1), last)
    return torch.where(upto[:, -1].isnan(), -1, tokens)


@sampling_probabilities.reference
def sampling_probabilities_reference(
    logits: torch.Tensor, *parameters: Any, **named: Any
) -> torch.Tensor:
    return _probabilities("sampling_probabilities", logits, *parameters, **named)


@sample_with_uniform.reference
def sample_with_uniform_reference(
    logits: torch.Tensor, uniform: torch.Tensor, *parameters: Any, **named: Any
) -> torch.Tensor:
    found = _probabilities("sample_with_uniform", logits, *parameters, **named)
    if uniform.shape != logits.shape[:1]:
        raise ValueError(
            f"sample_with_uniform: uniform has shape {tuple(uniform.shape)}; expected "
            f"{tuple(logits.shape[:1])}, a number for each row of logits {tuple(logits.shape)}"
        )
    return _drawn(found, uniform)


@sample.reference
def sample_reference(logits: torch.Tensor, *parameters: Any, **named: Any) -> torch.Tensor:
    found = _probabilities("sample", logits, *parameters, **named)
    return _drawn(found, torch.rand(logits.size(0), dtype=torch.float64, device=logits.device))


@sample_multinomial.reference
def sample_multinomial_reference(
    logits: torch.Tensor, *parameters: Any, check: bool = True, **named: Any
) -> torch.Tensor:
    if len(parameters) == 9:
        *parameters, check = parameters
    found = _probabilities("sample_multinomial", logits, *parameters, **named)
    return (torch.multinomial(found, 1) if check else raced(found)).squeeze(1)
