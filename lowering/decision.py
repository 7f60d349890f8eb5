"""Evaluates the requirements of an op's implementations as far as the compiler knows the arguments.
The runtime then decides which of them may serve a node, as it does for a call (runtime/choose).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opaq import _runtime

from . import options
from .lists import declared_name
from .symbolic import SymbolicEvaluator, SymbolicTensor, Truth, Unknown
from .tuned import NOTHING_MEASURED, Measured

if TYPE_CHECKING:
    from opaq._runtime import ImplementationInfo, NodeChoiceHandle, OpInfo, Requirement


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An implementation that serves a launch if the conditions below, which only the launch can
    evaluate, hold.
    """

    implementation: ImplementationInfo
    conditions: tuple[str, ...]  # what each launch evaluates: "aligned(x, 16)"
    copied: tuple[str, ...]  # arguments that the launch copies where they are not row-major


@dataclasses.dataclass(frozen=True)
class Decision:
    """The runtime's answer (NodeChoice in runtime/choose): `candidates` ends with the first that
    always fits. If none does, the reference comes last; without a reference, a launch that no
    candidate fits is an error.
    """

    candidates: tuple[Candidate, ...]
    has_reference: bool
    always_fits: bool
    contiguous: frozenset[str]  # arguments that the graph must make row-major
    copied: tuple[str, ...]  # those of them that are not row-major in eager
    skipped: tuple[str, ...]  # "cuda:vec4: aligned(x, 16) does not hold"
    handle: NodeChoiceHandle  # the answer itself, for the runtime
    measured: Measured = NOTHING_MEASURED  # which candidates are tried before the others

    @property
    def implementation(self) -> str | None:
        """The first choice: its name, or "reference"; None when nothing can serve the node."""
        if self.candidates:
            return self.candidates[0].implementation["name"]
        return "reference" if self.has_reference else None

    @property
    def chooses(self) -> bool:
        """Whether each launch takes the first candidate that fits it."""
        return not self.always_fits or len(self.candidates) > 1

    @property
    def may_need_reference(self) -> bool:
        """Whether there may be launches that the reference alone serves."""
        return bool(self.candidates) and not self.always_fits and self.has_reference

    @property
    def reason(self) -> str:
        parts = [*([self.measured.why] if self.measured.why else []), *self.skipped]
        if self.candidates:
            first = self.candidates[0]
            if copied := self.copied + first.copied:
                parts.append(f"made contiguous: {', '.join(copied)}")
            if first.conditions and not self.measured.ranges:
                parts.append(f"checked at each launch: {', '.join(first.conditions)}")
        return "; ".join(parts)


def decide(
    info: OpInfo,
    device_type: str,
    values: Mapping[str, Any],
    evaluator: SymbolicEvaluator,
    packaged: bool = False,
    measured: Measured = NOTHING_MEASURED,
) -> Decision:
    """Evaluates the requirements of the op's implementations for the device, and asks the runtime
    which of them may serve.

    values: the arguments as eager has them, and the results, by name: a SymbolicTensor for each
    tensor, None for an absent optional one. packaged: the node goes into a package.
    measured: which implementations are tried before the others, and why.
    """
    implementations = {i["name"]: i for i in info["implementations"] if i["device"] == device_type}
    answers = {
        name: _answers(i["requires"], values, evaluator) for name, i in implementations.items()
    }
    measured = _preferred(info["name"], answers) or measured
    choice = _runtime.choose(
        info["name"],
        device_type,
        answers,
        [_row_major(values[item["name"]], evaluator) for item in (*info["args"], *info["results"])],
        packaged,
        measured.for_runtime,
    )
    candidates = tuple(
        Candidate(
            implementations[launch["implementation"]],
            tuple(launch["conditions"]),
            tuple(launch["copied"]),
        )
        for launch in choice["launches"]
    )
    return Decision(
        candidates,
        info["has_reference"],
        choice["always_fits"],
        frozenset(choice["placed_row_major"]),
        tuple(choice["placed_copies"]),
        tuple(choice["skipped"]),
        choice["handle"],
        measured if choice["launches"] else NOTHING_MEASURED,
    )


def _preferred(op: str, answers: Mapping[str, Sequence[bool | None]]) -> Measured | None:
    """The first that may fit of those that the option `prefer` names for the op."""
    for wanted in options.current().preferred(declared_name(op)):
        for name, held in answers.items():
            if options.is_meant(name, wanted) and False not in held:
                return Measured(name, "preferred by an option")
    return None


def _answers(
    requirements: Sequence[Requirement], values: Mapping[str, Any], evaluator: SymbolicEvaluator
) -> list[bool | None]:
    """Whether each requirement holds; None where only the launch can tell."""
    return [_answer(evaluator.evaluate(each["python"], values)) for each in requirements]


def _row_major(value: Any, evaluator: SymbolicEvaluator) -> bool | None:
    """True for scalars and absent optional tensors."""
    return _answer(evaluator.IsContiguous(value)) if isinstance(value, SymbolicTensor) else True


def _answer(truth: Truth) -> bool | None:
    return None if isinstance(truth, Unknown) else bool(truth)


def explain_misfit(
    info: OpInfo, node: str, device: str, values: Mapping[str, Any], decision: Decision
) -> str:
    """The text of the error: op, node, device, why each implementation does not fit, the arguments,
    what to do.
    """
    if decision.implementation is None:
        head, todo = (
            "no implementation fits and there is no reference",
            "relax a requirement, add an implementation, or declare a reference",
        )
    else:
        head = f"strict: its first implementation does not fit, {decision.implementation} would run"
        todo = "change the arguments or the requirements, or compile without strict"
    lines = [f"{info['name']} (node {node}, {device}): {head}"]
    lines += [f"  {reason}" for reason in decision.skipped]
    on_device = {i["name"] for i in info["implementations"] if i["device"] == device.split(":")[0]}
    lines += [
        f"  {i['name']}: is for {i['device']}"
        for i in info["implementations"]
        if i["name"] not in on_device
    ]
    lines.append("  arguments: " + "; ".join(f"{name} {value}" for name, value in values.items()))
    lines.append(f"  {todo}")
    return "\n".join(lines)
