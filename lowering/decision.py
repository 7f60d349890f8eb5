"""Which implementation serves a node: the first for its device that nothing known at compile time speaks against."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .symbolic import UNKNOWN, Facts, Names, Tensor

if TYPE_CHECKING:
    from opaq._runtime import ImplementationInfo, OpInfo, Requirement


@dataclasses.dataclass(frozen=True)
class Decision:
    """`implementation`: its name, or "reference"; None when nothing can serve the node."""

    implementation: str | None
    contiguous: frozenset[str] = frozenset()  # arguments to be handed over row-major
    skipped: tuple[str, ...] = ()  # "cuda:vec4: aligned(x, 16) does not hold"
    at_launch: tuple[str, ...] = ()  # requirements that depend on run-time values
    copied: tuple[str, ...] = ()  # arguments that are not row-major in eager

    @property
    def reason(self) -> str:
        parts = list(self.skipped)
        if self.copied:
            parts.append(f"made contiguous: {', '.join(self.copied)}")
        if self.at_launch:
            parts.append(f"checked at each launch: {', '.join(self.at_launch)}")
        return "; ".join(parts)


def decide(info: OpInfo, device_type: str, values: Mapping[str, Any], names: Names) -> Decision:
    """`values`: the arguments as eager has them, and the results, by name; Facts for tensors, None where an optional one is absent.

    As in eager: an implementation that takes the arguments as they are goes before one for which some must be made contiguous first.
    """
    results = {output["name"] for output in info["outputs"]}
    skipped: list[str] = []
    copying: Decision | None = None
    for implementation in info["implementations"]:
        name = implementation["name"]
        if implementation["device"] != device_type:
            continue
        failed, at_launch = _judge(implementation, values, names)
        if failed:
            skipped.append(f"{name}: {failed}")
            continue
        strided = tuple(arg for arg in implementation["needs_contiguous"] if not _known_contiguous(values[arg], names))
        outputs = [arg for arg in strided if arg in results]
        if outputs:
            skipped.append(f"{name}: needs {', '.join(outputs)} row-major, which the output rule does not give")
            continue
        if not strided:
            return Decision(name, frozenset(implementation["needs_contiguous"]), tuple(skipped), at_launch)
        if copying is None:
            copying = Decision(name, frozenset(implementation["needs_contiguous"]), tuple(skipped), at_launch, strided)
        skipped.append(f"{name}: {', '.join(strided)} would have to be made contiguous")
    if copying is not None:
        return copying
    if not skipped:
        skipped.append(f"no implementation for {device_type}")
    return Decision("reference" if info["has_reference"] else None, skipped=tuple(skipped))


def _judge(implementation: ImplementationInfo, values: Mapping[str, Any], names: Names) -> tuple[str, tuple[str, ...]]:
    """Why the implementation cannot serve, or ""; and what only the launch can tell."""
    at_launch = []
    for requirement in implementation["requires"]:
        truth = names.evaluate(requirement["sympy"], values)
        if truth is UNKNOWN:
            at_launch.append(requirement["text"])
        elif not truth:
            return f"{requirement['text']} does not hold", ()
    return "", tuple(at_launch)


def _known_contiguous(value: Any, names: Names) -> bool:
    if not isinstance(value, Facts):
        return True  # an absent optional argument
    return Tensor(value, names).is_contiguous() is True


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An implementation that may serve a launch of a node, once what only the launch can tell holds."""

    implementation: ImplementationInfo
    at_launch: tuple[Requirement, ...]


def candidates(info: OpInfo, device_type: str, values: Mapping[str, Any], names: Names, decision: Decision) -> list[Candidate]:
    """The implementations to try at a launch, in order, when the arguments are laid out as `decision` says: up to the first that always fits."""
    found: list[Candidate] = []
    for implementation in info["implementations"]:
        failed = implementation["device"] != device_type or _judge(implementation, values, names)[0]
        strided = (arg for arg in implementation["needs_contiguous"] if arg not in decision.contiguous and not _known_contiguous(values[arg], names))
        if failed or any(strided):
            continue
        at_launch = tuple(r for r in implementation["requires"] if names.evaluate(r["sympy"], values) is UNKNOWN)
        found.append(Candidate(implementation, at_launch))
        if not at_launch:
            break
    return found


def explain_misfit(info: OpInfo, node: str, device: str, values: Mapping[str, Any], decision: Decision) -> str:
    """The text of the error: op, node, device, each implementation and why not, the arguments, what to do."""
    if decision.implementation is None:
        head, todo = "no implementation fits and there is no reference", "relax a requirement, add an implementation, or declare a reference"
    else:
        head = f"strict: its first implementation does not fit, {decision.implementation} would run"
        todo = "change the arguments or the requirements, or compile without strict"
    lines = [f"{info['name']} (node {node}, {device}): {head}"]
    lines += [f"  {reason}" for reason in decision.skipped]
    on_device = {i["name"] for i in info["implementations"] if i["device"] == device.split(":")[0]}
    lines += [f"  {i['name']}: is for {i['device']}" for i in info["implementations"] if i["name"] not in on_device]
    lines.append("  arguments: " + "; ".join(f"{name} {value}" for name, value in values.items()))
    lines.append(f"  {todo}")
    return "\n".join(lines)
