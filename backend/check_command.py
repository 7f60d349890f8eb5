"""`opaq check FILE_OR_MODULE[:op]`: checks the ops that a file or module declares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from . import DeclarationError, Error, code_check, example_arguments, user_file
from .op import Op, declared_ops
from .user_file import WrongTarget


def run(
    target: str,
    archs: Sequence[str],
    examples: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """{"target", "ok", "problem", "ops": [`CodeCheck.as_dict()`]} and, under "reports", the
    CodeChecks. "problem": the declaration that was refused while the file was loaded, or None.
    Raises WrongTarget.
    """
    place, name = user_file.split(target)
    try:
        module = user_file.load(place, "that declares ops")
    except DeclarationError as error:
        problem = f"{user_file.line_of(error, place)}{error}"
        return {"target": target, "ok": False, "problem": problem, "ops": [], "reports": []}
    ops = _ops_of(module, place, name)
    if examples:
        if len(ops) != 1:
            raise WrongTarget(
                f"--example: {place} declares {len(ops)} ops: {', '.join(op.name for op in ops)}; "
                f"name the one that the example is for, as in {place}:{ops[0].name}"
            )
        for text in examples:
            try:
                ops[0].example(*example_arguments.parse(text, ops[0].info))
            except (ValueError, Error) as error:
                raise WrongTarget(f"--example {text!r}: {error}") from error
    try:
        chosen = code_check.archs_of("opaq check", archs)
        reports = [code_check.check(op.name, op.examples, chosen, progress) for op in ops]
    except DeclarationError as error:
        raise WrongTarget(str(error)) from error
    return {
        "target": target,
        "ok": all(report.ok for report in reports),
        "problem": None,
        "ops": [report.as_dict() for report in reports],
        "reports": reports,
    }


def as_text(found: dict[str, Any]) -> str:
    if found["problem"]:
        return f"PROBLEM: {found['problem']}"
    return "\n\n".join(map(repr, found["reports"]))


def _ops_of(module: ModuleType, place: str, name: str) -> list[Op]:
    ops = declared_ops()
    if not ops:
        raise WrongTarget(f"{place}: it declares no op with opaq.op(...)")
    if not name:
        return ops
    named = getattr(module, name, None)
    if isinstance(named, Op):
        return [named]
    found = [op for op in ops if name in (op.name, op.name.partition("::")[2])]
    if not found:
        known = ", ".join(op.name for op in ops)
        raise WrongTarget(f"{place}: no op is named {name!r}; it has {known}")
    return found
