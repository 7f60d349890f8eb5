"""Which implementations may serve a node, in the order in which a launch tries them: as Selector
(runtime/select) does with real arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .symbolic import UNKNOWN, Facts, Names, Truth

if TYPE_CHECKING:
    from opaq._runtime import ImplementationInfo, OpInfo, Requirement


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An implementation that serves a launch where what only the launch can tell holds."""

    implementation: ImplementationInfo
    at_launch: tuple[Requirement, ...]
    contiguous: tuple[
        str, ...
    ] = ()  # arguments that must be row-major as they are, which only the launch can tell
    copied: tuple[
        str, ...
    ] = ()  # arguments that it gets in row-major copies, where they are not row-major

    @property
    def conditions(self) -> list[str]:
        return [r["text"] for r in self.at_launch] + [
            f"{name}.is_contiguous()" for name in self.contiguous
        ]


@dataclasses.dataclass(frozen=True)
class Decision:
    """`candidates` ends with the first that always fits; where none does, the reference serves, or
    nothing can.
    """

    candidates: tuple[Candidate, ...]
    has_reference: bool
    contiguous: frozenset[str] = frozenset()  # arguments to be placed row-major before the launch
    copied: tuple[str, ...] = ()  # those of them that are not row-major in eager
    skipped: tuple[str, ...] = ()  # "cuda:vec4: aligned(x, 16) does not hold"

    @property
    def implementation(self) -> str | None:
        """The first choice: its name, or "reference"; None when nothing can serve the node."""
        if self.candidates:
            return self.candidates[0].implementation["name"]
        return "reference" if self.has_reference else None

    @property
    def always_fits(self) -> bool:
        return bool(self.candidates) and not self.candidates[-1].conditions

    @property
    def reason(self) -> str:
        parts = list(self.skipped)
        if self.candidates:
            first = self.candidates[0]
            if copied := self.copied + first.copied:
                parts.append(f"made contiguous: {', '.join(copied)}")
            if first.conditions:
                parts.append(f"checked at each launch: {', '.join(first.conditions)}")
        return "; ".join(parts)


def decide(info: OpInfo, device_type: str, values: Mapping[str, Any], names: Names) -> Decision:
    """`values`: the arguments as eager has them, and the results, by name; Facts for tensors, None
    where an optional one is absent.

    As in eager: an implementation that takes the arguments as they are goes before one for which
    some must be made contiguous first.
    """
    skipped: list[str] = []
    as_they_are: list[Candidate] = []
    on_copies: list[Candidate] = []
    for implementation in info["implementations"]:
        name = implementation["name"]
        if implementation["device"] != device_type:
            continue
        failed, at_launch = _judge(implementation, values, names)
        if failed:
            skipped.append(f"{name}: {failed}")
            continue
        row_major = {
            arg: _row_major(values[arg], names) for arg in implementation["needs_contiguous"]
        }
        strided = tuple(arg for arg, truth in row_major.items() if truth is False)
        unknown = tuple(arg for arg, truth in row_major.items() if truth is UNKNOWN)
        if strided:
            skipped.append(f"{name}: {', '.join(strided)} would have to be made contiguous")
        else:
            as_they_are.append(Candidate(implementation, at_launch, contiguous=unknown))
        if strided or unknown:
            on_copies.append(Candidate(implementation, at_launch, copied=strided + unknown))
    tried = _up_to_the_first_that_fits([*as_they_are, *on_copies])
    if tried and not as_they_are:  # what was skipped for its layout is served on copies
        skipped = [
            text for text in skipped if not text.startswith(f"{tried[0].implementation['name']}: ")
        ]
    if not tried and not skipped:
        skipped.append(f"no implementation for {device_type}")
    decision = Decision(tried, info["has_reference"], skipped=tuple(skipped))
    return _place_copies(decision, values, names)


def _up_to_the_first_that_fits(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    tried = []
    for candidate in candidates:
        tried.append(candidate)
        if not candidate.conditions:
            break
    return tuple(tried)


def _place_copies(decision: Decision, values: Mapping[str, Any], names: Names) -> Decision:
    """Leaves a copy to the graph, which may find the argument's producer able to write it
    row-major, where every launch needs it.

    That is where one implementation serves all launches: no condition of another is evaluated on
    the arguments as they are."""
    known = frozenset(
        arg
        for c in decision.candidates
        for arg in c.implementation["needs_contiguous"]
        if _row_major(values[arg], names) is True
    )
    if len(decision.candidates) == 1 and not decision.candidates[0].conditions:
        (only,) = decision.candidates
        placed = dataclasses.replace(only, copied=())
        return dataclasses.replace(
            decision,
            candidates=(placed,),
            contiguous=known | frozenset(only.copied),
            copied=only.copied,
        )
    return dataclasses.replace(decision, contiguous=known)


def _judge(
    implementation: ImplementationInfo, values: Mapping[str, Any], names: Names
) -> tuple[str, tuple[Requirement, ...]]:
    """Why the implementation cannot serve, or ""; and what only the launch can tell."""
    at_launch = []
    for requirement in implementation["requires"]:
        truth = names.evaluate(requirement["python"], values)
        if truth is UNKNOWN:
            at_launch.append(requirement)
        elif not truth:
            return f"{requirement['text']} does not hold", ()
    return "", tuple(at_launch)


def _row_major(value: Any, names: Names) -> Truth:
    return (
        names.IsContiguous(value) if isinstance(value, Facts) else True
    )  # an absent optional argument


def explain_misfit(
    info: OpInfo, node: str, device: str, values: Mapping[str, Any], decision: Decision
) -> str:
    """The text of the error: op, node, device, each implementation and why not, the arguments, what
    to do.
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
