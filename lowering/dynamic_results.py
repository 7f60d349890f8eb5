"""In Inductor's graphs: results whose sizes only the launch knows. The launch fills buffers of the
largest size; then its counts are read, and the results are views of what was written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sympy
import torch

from . import counts
from .compat.inductor import inductor
from .symbolic import SymbolicTensor

if TYPE_CHECKING:
    from opaq._runtime import OpInfo


def whole(
    info: OpInfo, outputs: Sequence[SymbolicTensor], largest: Any, device: torch.device
) -> list[SymbolicTensor]:
    """The results of a launch. outputs: those of the op. largest: computes those of the op with
    the bounds in place of counts, as fake tensors."""
    if not counts.are_read(info):
        return list(outputs)
    sizes = [fake.shape for fake in largest()]
    results = []
    for output, rule, bounds in zip(outputs, info["outputs"], sizes):
        found = list(output.sizes)
        for dim, _ in rule["counted"]:
            found[dim] = inductor.expressions([bounds[dim]])[0]
        results.append(dataclasses.replace(output, sizes=tuple(found)))
    return [
        *results,
        *(SymbolicTensor((), (), torch.int64, device) for _ in counts.names(info)),
    ]


def shortened(info: OpInfo, results: Sequence[Any], outputs: Sequence[SymbolicTensor]) -> list[Any]:
    """The op's results from those of the node being lowered, which has been made."""
    read = dict(zip(counts.names(info), results[len(outputs) :]))
    for symbol, result, dim in inductor.sizes_defined():
        counted = {
            at % len(outputs[result].sizes): name for at, name in info["outputs"][result]["counted"]
        }
        name = counted[dim]
        if name not in read:
            continue
        inductor.define_by_item(symbol, read.pop(name))
        bound = results[result].get_size()[dim]
        inductor.require(
            sympy.And(sympy.Ge(symbol, 0), sympy.Le(symbol, bound)),
            f"0 to {bound} in count `{name}` of {info['name']}, which the implementation has "
            "written (and perhaps more than the result holds: correct the kernel, or the bound)",
        )
    return [
        inductor.strided_view(made, output.sizes, output.strides) if rule["counted"] else made
        for made, output, rule in zip(results, outputs, info["outputs"])
    ]
