"""`Op.check`: compiles every implementation of an op and tells what a launch would take, without a
GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from . import _runtime, example_arguments, validate
from .terminal import table

Progress = Callable[[str], None]
# Per thread, except `shared`, of a block, and occupancy, of an SM.
COLUMNS = ("arch", "registers", "shared", "stack", "spills", "occupancy")


@dataclass(frozen=True)
class CheckedImplementation:
    """One implementation, or one step of it, for one example or for none."""

    name: str
    device: str
    kind: str
    example: str | None  # "x float32[1000]"; None: there was no example, or it did not fit
    why_not: str  # what the example does not meet; "" if the implementation fits it
    entry: str  # the kernel or function, template arguments filled
    problem: str  # of the launch rule, for every architecture; "": none
    # Architectures that were asked for and that it does not serve: "sm_80: arch(x) >= 90 does not
    # hold".
    refused: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)  # without an example: "x.dtype = float32"
    unchecked: list[str] = field(default_factory=list)  # what an example is needed for
    step: int | None = None  # counted from 1; None: there is only one launch
    launch: dict[str, Any] | None = None  # grid, block, cluster, shared, empty
    # For each architecture: arch, problem, parameters, resources, occupancy, bytes, seconds,
    # from_cache, compiler, log; None where it is not known. Host code has one item, with
    # arch "", and so has a binary if no arch is asked for.
    code: list[_runtime.CheckedCode] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Each once: one that is the same for several architectures is one problem."""
        first = [self.problem] if self.problem else []
        by_text: dict[str, list[_runtime.CheckedCode]] = {}
        for code in self.code:
            if code["problem"]:
                text = code["problem"]
                text = text.replace(code["arch"], "ARCH") if code["arch"] else text
                by_text.setdefault(text, []).append(code)
        return first + [
            same[0]["problem"] + _others([code["arch"] for code in same[1:]])
            for same in by_text.values()
        ]


def _others(archs: list[str]) -> str:
    return f"\nThe same for {', '.join(archs)}." if archs else ""


@dataclass(frozen=True)
class CodeCheck:
    """What `Op.check` found. `ok`: no problems. repr() is a table for reading; `as_dict` the same
    as JSON-like data.
    """

    op: str
    schema: str
    implementations: list[CheckedImplementation]
    no_fit: list[str] = field(default_factory=list)  # examples that nothing can serve

    @property
    def problems(self) -> list[str]:
        return [
            text for implementation in self.implementations for text in implementation.problems
        ] + self.no_fit

    @property
    def ok(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        return {
            "op": self.op,
            "schema": self.schema,
            "ok": self.ok,
            "problems": self.problems,
            "implementations": [asdict(item) for item in self.implementations],
        }

    def __repr__(self) -> str:
        lines = [self.schema]
        for item in self.implementations:
            lines += ["  " + line for line in _lines(item)]
        lines += [f"  PROBLEM: {text}".replace("\n", "\n    ") for text in self.no_fit]
        count = len(self.problems)
        lines.append(
            "no problems found" if not count else f"{count} problem{'s' if count > 1 else ''} found"
        )
        return "\n".join(lines)


def check(
    name: str,
    examples: Mapping[str, Sequence[Sequence[_runtime.FakeArgument]]],
    archs: Sequence[str],
    progress: Progress = lambda _: None,
) -> CodeCheck:
    """Checks an op, for each example, or for none. examples: by the name of the op, or of its form
    for lists of certain lengths. `archs` must not be empty if the op has CUDA source. `progress`
    gets a line before each implementation.
    """
    info = _runtime.describe(name)
    if not archs and any(map(needs_arch, info["implementations"])):
        validate.refuse(
            f"{name}: .check(...)",
            "arch",
            list(archs),
            'what CUDA source is compiled for, such as "sm_90a", as there is no GPU here',
        )
    checked, no_fit, has_reference = [], [], info["has_reference"]
    schema = info["schema"]
    cases = [(form, example) for form, several in examples.items() for example in several]
    for form, example in cases or [(_runtime.form(name, []), None)]:
        info = _runtime.describe(form)
        served = dict.fromkeys(item["device"] for item in info["implementations"])
        found = []
        for item in info["implementations"]:
            for_archs = f" for {', '.join(archs)}" if item["kernel"] and archs else ""
            progress(f"{name}: {item['name']}{for_archs}")
            found += check_implementation(info, item, example, archs)
            served[item["device"]] = served[item["device"]] or not found[-1].why_not
        if example is not None and not has_reference:
            no_fit += [
                f"{name}: no implementation for {device} fits this example, and there is no "
                f"reference: {example_arguments.as_text(example, info)}"
                for device, fits in served.items()
                if not fits
            ]
        checked += found
    if not info["implementations"] and not has_reference:
        no_fit.append(f"{name} has neither implementations nor a reference: every call would fail")
    return CodeCheck(name, schema, checked, no_fit)


def archs_of(where: str, arch: Any) -> list[str]:
    """The architectures that a user has named; if none, the current GPU's, if there is one."""
    archs = [arch] if isinstance(arch, str) else validate.texts(where, "arch", arch)
    for item in archs:
        if not validate.ARCH.fullmatch(item):
            validate.refuse(where, "arch", item, "an architecture such as 'sm_90a' or 'compute_90'")
    if archs:
        return list(dict.fromkeys(archs))
    try:
        return [_runtime.device_arch(0)]
    except _runtime.Error:
        return []


def needs_arch(item: _runtime.ImplementationInfo) -> bool:
    """Whether it is compiled for an architecture."""
    return item["kernel"] and item["kind"] != "binary"


def check_implementation(
    info: _runtime.OpInfo,
    item: _runtime.ImplementationInfo,
    example: Sequence[_runtime.FakeArgument] | None,
    archs: Sequence[str],
) -> list[CheckedImplementation]:
    """Its steps."""
    text = None if example is None else example_arguments.as_text(example, info)
    facts = (item["name"], item["device"], item["kind"])
    if not item["native"]:
        note = f"{item['article']}: there is nothing to compile"
        return [CheckedImplementation(*facts, text, "", "", "", unchecked=[note])]
    arguments = None
    if example is not None:
        device = "cuda:0" if item["device"] == "cuda" else "cpu"
        arguments = example_arguments.on_device(example, info, device, item["needs_contiguous"])
    steps = _runtime.check_code(info["name"], item["name"], arguments, archs)
    return [
        CheckedImplementation(
            *facts,
            example=text,
            why_not=found["why_not"],
            entry=found["entry"],
            problem=found["problem"],
            refused=found["refused"],
            assumed=found["assumed"],
            unchecked=found["unchecked"],
            step=i + 1 if len(steps) > 1 else None,
            launch=found["launch"],
            code=found["code"],
        )
        for i, found in enumerate(steps)
    ]


# ---- as text -------------------------------------------------------------------------------------


def _lines(item: CheckedImplementation) -> list[str]:
    step = f", step {item.step}" if item.step else ""
    head = f"{item.name} ({item.device}){step}: {item.entry}"
    parameters = next((code["parameters"] for code in item.code if code["parameters"]), None)
    lines = [head + (f"({', '.join(parameters)})" if parameters else "")]
    if item.example is not None:
        lines.append(f"  example: {item.example}")
    if item.why_not:
        lines.append(f"  does not serve this example: {item.why_not}")
    lines += [f"  not for {text}" for text in item.refused]
    if item.assumed:
        lines.append(f"  assumed, without an example: {', '.join(item.assumed)}")
    if item.launch:
        lines.append("  " + launch_text(item.launch))
    lines += [f"  not known without an example: {text}" for text in item.unchecked]
    if any(code["arch"] or code["resources"] for code in item.code):
        rows = [COLUMNS, *map(row, item.code)]
        lines += ["  " + line for line in table(rows).split("\n")]
    elif item.code and not item.code[0]["problem"]:
        lines.append("  compiles, and its parameters fit")
    for code in item.code:
        if code["log"] and not code["problem"]:
            where = f" for {code['arch']}" if code["arch"] else ""
            lines += [f"  the compiler says{where}:"]
            lines += ["    " + line for line in code["log"].splitlines()]
    for problem in item.problems:
        lines += ["  PROBLEM: " + problem.replace("\n", "\n    ")]
    return "\n".join(lines).split("\n")


def launch_text(launch: dict[str, Any]) -> str:
    if launch["empty"]:
        return "nothing is launched: a grid dimension is 0"
    parts = [f"{name} {tuple(launch[name])}" for name in ("grid", "block")]
    if any(launch["cluster"]):
        parts.append(f"cluster {tuple(launch['cluster'])}")
    return ", ".join(parts) + f", dynamic shared memory {launch['shared']} bytes"


def row(code: _runtime.CheckedCode) -> tuple[str, ...]:
    """The cells of COLUMNS."""
    arch = code["arch"] or "as given"
    by = " by nvcc" if code["compiler"] == "nvcc" else ""
    if code["problem"]:
        return (arch, "PROBLEM", "", "", "", "")
    used = code["resources"] or {}

    def told(*names: str) -> str:
        values = [used.get(name) for name in names]
        return "unknown" if None in values else str(sum(values))

    return (
        arch + by,
        told("registers"),
        told("shared"),
        told("stack"),
        told("spill_stores", "spill_loads"),
        _occupancy_text(code["occupancy"]),
    )


def _occupancy_text(held: _runtime.Occupancy | None) -> str:
    if held is None:
        return "unknown"
    blocks = f"{held['blocks']} block{'s' if held['blocks'] > 1 else ''}"
    return (
        f"{held['warps'] / held['most_warps']:.0%}: {held['warps']} of {held['most_warps']} warps "
        f"in {blocks}, limited by {held['limit']}"
    )
