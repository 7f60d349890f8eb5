"""What a node is in a C++ wrapper: the implementations to try at a launch, compiled ahead by the
runtime (runtime/wrapper); or why it has no such form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sympy
import torch

from opaq import _runtime

from . import options
from .compat.inductor import inductor
from .decision import Candidate, Decision
from .devices import device_name
from .symbolic import SymbolicEvaluator, fake_argument

if TYPE_CHECKING:
    from opaq._runtime import CppNode, FakeArgument, ImplementationInfo, OpInfo


# What to do where no implementation runs without Python.
WITHOUT_PYTHON = "give the op an implementation in CUDA or C++, or of a library"


class NoCppForm(Exception):
    """Why a node cannot be printed as C++; `remedy` says what to do where nothing else can run
    it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


@dataclasses.dataclass(frozen=True)
class CppForm:
    """What a node prints into a C++ wrapper."""

    compiled: CppNode
    implementations: list[ImplementationInfo]  # in the order tried
    known: Mapping[str, Any]  # of each argument and result, SymbolicTensor for tensors
    timed: bool  # its function takes timers
    profiled: bool  # its launches are events of PyTorch's profiler


def plan(
    info: OpInfo,
    device: torch.device,
    values: Mapping[str, Any],
    evaluator: SymbolicEvaluator,
    decision: Decision,
    language: str,
) -> CppForm:
    """`values`: as for decide(). Raises NoCppForm, and what compiling raises."""
    if inductor.prints_two_wrappers():
        raise NoCppForm(
            "Triton kernels are to be tuned while the model is packaged, by a second wrapper",
            "leave triton.autotune_at_compile_time unset",
        )
    check(info, device, values, evaluator, decision, language)
    found = decision.candidates
    chosen, package = options.current(), language == "package"
    timed, profiled = chosen.profile and not package, inductor.records_kernels()
    compiled = _runtime.cpp_node(
        info["name"],
        decision.handle,
        likely_arguments(info, values),
        device_name(device),
        chosen.archs,
        chosen.ptx,
        package,
        timed,
        profiled,
    )
    implementations = [candidate.implementation for candidate in found]
    return CppForm(compiled, implementations, values, timed, profiled)


def native(info: OpInfo, device: torch.device) -> list[ImplementationInfo]:
    """Implementations for a device that run without Python."""
    return [i for i in info["implementations"] if i["native"] and i["device"] == device.type]


def check(
    info: OpInfo,
    device: torch.device,
    values: Mapping[str, Any],
    evaluator: SymbolicEvaluator,
    decision: Decision,
    language: str,
) -> None:
    """Raises NoCppForm where the declaration and the arguments leave none. The same as plan()."""
    if decision.implementation == "reference":
        raise NoCppForm(
            f"no implementation fits ({'; '.join(decision.skipped)}) and the reference is a "
            "Python function",
            "add an implementation that fits, or change the arguments"
            if native(info, device)
            else WITHOUT_PYTHON,
        )
    found = decision.candidates
    for candidate in found:
        if not candidate.implementation["native"]:
            raise NoCppForm(
                f"{candidate.implementation['name']} is {candidate.implementation['article']}",
                WITHOUT_PYTHON,
            )
    if language == "cpp" and decision.may_need_reference:
        raise NoCppForm(
            f"{', '.join(found[-1].conditions)} is known at each launch only, and where it does "
            "not hold the reference runs, which is a Python function",
            "add an implementation without the requirement",
        )
    copied = [
        arg["name"]
        for arg in info["args"]
        if arg["mutated"] and any(arg["name"] in candidate.copied for candidate in found)
    ]
    if copied:
        raise NoCppForm(
            f"{', '.join(copied)} is written, and whether it has to be copied to row-major "
            "order is known at each launch only",
            "make it contiguous before the call, or let the kernel take its strides",
        )
    _check_template_args(found, values, evaluator)
    _check_scratch_dtypes(found, values, evaluator)


def likely_arguments(info: OpInfo, values: Mapping[str, Any]) -> list[FakeArgument]:
    """The arguments with likely numbers in the place of symbols."""
    return [fake_argument(values[arg["name"]], _number) for arg in info["args"]]


def _check_template_args(
    found: Sequence[Candidate], values: Mapping[str, Any], evaluator: SymbolicEvaluator
) -> None:
    for candidate in found:
        for argument in candidate.implementation["template_args"]:
            value = evaluator.value(argument["python"], values)
            if not isinstance(value, (int, bool, torch.dtype, sympy.Integer)):
                raise NoCppForm(
                    f"the entry `{candidate.implementation['entry']}` of "
                    f"{candidate.implementation['name']} has the template argument "
                    f"`{argument['text']}`, which changes from call to call",
                    "pass it as an argument of the kernel, or mark the dimension as static",
                )


def _check_scratch_dtypes(
    found: Sequence[Candidate], values: Mapping[str, Any], evaluator: SymbolicEvaluator
) -> None:
    for candidate in found:
        for scratch in candidate.implementation["scratch"]:
            if not isinstance(evaluator.value(scratch["dtype"], values), torch.dtype):
                raise NoCppForm(
                    f"the dtype of scratch `{scratch['name']}` of "
                    f"{candidate.implementation['name']} changes from call to call",
                    "make it depend on dtypes only",
                )


def _number(value: Any) -> Any:
    """Symbols are replaced by likely numbers: no template argument depends on them."""
    if not isinstance(value, sympy.Basic):
        return value
    if not isinstance(value, sympy.Expr):  # a relation
        return bool(value == sympy.true)
    return float(value) if value.is_Float else inductor.size_hint(value)
