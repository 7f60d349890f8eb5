"""Parts of an implementation that is more than one launch: scratch tensors and steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import _runtime, rules, validate
from .arguments import Argument, argument_list
from .rules import Output
from .validate import Binary, File, flag, refuse


@dataclass(frozen=True)
class Zeros:
    """A scratch tensor that is zero when the first kernel starts; texts as in rules.Output."""

    shape: str
    dtype: str
    once: bool


def zeros(shape: object, *, dtype: object, once: bool = False) -> Zeros:
    """For `scratch`: a tensor of zeros. shape, dtype: as for opaq.tensor.

    once: it is zeroed before the first launch, and a later one may find what the last one left:
    zeros again, where kernels count finished blocks and reset the counter, or whatever a launch of
    any size can begin with. Launches of other sizes use the same memory, from its start on, but
    none at the same time. Memory that is left otherwise makes later launches wrong. Raises
    opaq.DeclarationError.
    """
    where = "opaq.zeros(...)"
    return Zeros(
        rules.sizes_text(where, "shape", shape),
        rules.dtype_text(where, dtype),
        flag(where, "once", once),
    )


@dataclass(frozen=True)
class Philox:
    """A scratch tensor that holds a seed and an offset; text as in rules.Output."""

    dtype: str


def philox(*, dtype: object = "uint64") -> Philox:
    """For `scratch`: two 64-bit integers in the memory of the device, a seed and an offset for a
    counter-based generator such as Philox (curand_init, at::Philox4_32). PyTorch's default
    generator of the device draws both anew for each launch, from 0 to 2^62 - 1, so
    torch.manual_seed decides them, and in a CUDA graph each replay has its own.

    A kernel that takes the tensor reads `rng[0]` and `rng[1]` and may use as many random numbers as
    it likes. All steps of an implementation get the same two: give them subsequences of their own.
    dtype: "uint64" or "int64", as the kernel's pointer says.

    Only for ops that are declared with effects="random". Raises opaq.DeclarationError.
    """
    return Philox(rules.dtype_text("opaq.philox(...)", dtype))


@dataclass(frozen=True)
class Exponential:
    """A scratch tensor of exponential random numbers; texts as in rules.Output."""

    shape: str
    dtype: str


def exponential(shape: object, *, dtype: object = "float32") -> Exponential:
    """For `scratch`: a tensor of random numbers from the exponential distribution of rate 1.
    PyTorch's default generator of the device draws them anew for each launch: they are those that
    `torch.empty(shape, dtype=dtype, device=device).exponential_()` would give in the place of the
    launch, and the generator goes on as after that. So torch.manual_seed decides them, and in a
    CUDA graph each replay has its own.

    torch.multinomial(p, 1) draws such a tensor `q` of the shape and dtype of `p`, and takes the
    largest `p / q` of each row: a kernel that does so draws what torch.multinomial draws.

    shape: as for opaq.tensor. A tensor without elements draws nothing.
    dtype: "float32", "float64", "float16" or "bfloat16", or an expression such as "logits.dtype";
        where that gives another one, the launch is refused. With the same seed, each dtype has
        numbers of its own: float16 is not float32 rounded.

    Where an implementation has several tensors of random numbers, they are drawn in the order in
    which `scratch` lists them. Only for ops that are declared with effects="random". Raises
    opaq.DeclarationError; launches raise opaq.LaunchError.
    """
    where = "opaq.exponential(...)"
    return Exponential(rules.sizes_text(where, "shape", shape), rules.dtype_text(where, dtype))


Scratch = Output | Zeros | Philox | Exponential


@dataclass(frozen=True)
class Step:
    """One launch of several, as texts that the runtime parses."""

    fields: Mapping[str, Any]


def step(
    *,
    entry: str,
    args: str | Sequence[str | Argument],
    grid: object = "1",
    block: object = "1",
    cluster: object = "",
    shared: object = "0",
    cooperative: bool = False,
    programmatic: bool = False,
    source: str | File | None = None,
    binary: Binary | Mapping[str, Binary] | None = None,
    options: Sequence[str] = (),
    include_dirs: Sequence[str] = (),
) -> Step:
    """One launch of an implementation that makes several, for `steps`. All parameters are as for
    .cuda(...) and .cpu(...); args, grid and the like may also refer to the scratch tensors.

    source, binary, options, include_dirs: if they are not those of the whole implementation. A step
    whose grid is empty is left out. programmatic: it may start before the step in front of it, or
    the kernel in front of the first step, has ended. Raises opaq.DeclarationError.
    """
    where = "opaq.step(...)"
    fields = {
        "entry": validate.text(where, "entry", entry),
        "args": argument_list(where, args),
        "grid": validate.expressions(where, "grid", grid),
        "block": validate.expressions(where, "block", block),
        "cluster": validate.expressions(where, "cluster", cluster),
        "shared": validate.expressions(where, "shared", shared),
        "cooperative": flag(where, "cooperative", cooperative),
        "programmatic": flag(where, "programmatic", programmatic),
        "options": validate.texts(where, "options", options),
        "include_dirs": validate.folders(where, "include_dirs", include_dirs),
    }
    if source is not None or binary is not None:
        code, path = rules.code(where, source, binary, ("source=", "binary="))
        fields |= {
            "code": code,
            "file": path,
            "kind": "binary" if binary is not None else "source",
        }
    return Step(fields)


def scratch_texts(where: str, scratch: object) -> list[dict[str, Any]]:
    """Scratch tensors as _runtime.implement takes them."""
    if scratch is None:
        return []
    if not isinstance(scratch, Mapping) or not all(
        isinstance(name, str) and isinstance(rule, Scratch) for name, rule in scratch.items()
    ):
        refuse(
            where,
            "scratch",
            scratch,
            "a dict of opaq.tensor(...), opaq.zeros(...), opaq.philox() or opaq.exponential(...) "
            "by name, such as {'partial': opaq.tensor('64', dtype='float32')}",
        )
    return [
        _scratch_text(f"{where}: scratch {name!r}", name, rule) for name, rule in scratch.items()
    ]


def _scratch_text(where: str, name: str, rule: Scratch) -> dict[str, Any]:
    if isinstance(rule, Philox):
        return {"name": name, "shape": "2", "dtype": rule.dtype, "random": "philox"}
    if isinstance(rule, Exponential):
        return {
            "name": name,
            "shape": rule.shape,
            "dtype": rule.dtype,
            "random": "exponential",
        }
    if isinstance(rule, Zeros):
        return {
            "name": name,
            "shape": rule.shape,
            "dtype": rule.dtype,
            "zeros": True,
            "once": rule.once,
        }
    for field in ("strides", "device", "partial", "may_overwrite"):
        if value := getattr(rule, field):
            refuse(
                where,
                field,
                value,
                "none: scratch is row-major, on the launch's device, and may be left unwritten",
            )
    return {"name": name, "like": rule.like, "shape": rule.shape, "dtype": rule.dtype}


def step_texts(where: str, steps: object) -> list[Mapping[str, Any]]:
    """Steps as _runtime.implement takes them."""
    if not isinstance(steps, (list, tuple)) or not all(isinstance(item, Step) for item in steps):
        refuse(where, "steps", steps, "a list of opaq.step(...)")
    return [item.fields for item in steps]


def code(
    where: str, source: object, binary: object, steps: Sequence[Mapping[str, Any]]
) -> tuple[str | bytes, str, str]:
    """(code, path of its file, kind) of an implementation; no code if each step has its own."""
    if source is None and binary is None and steps:
        for index, fields in enumerate(steps):
            if "code" not in fields:
                raise _runtime.DeclarationError(
                    f"{where}: step {index + 1} has no code; give it source=, or give source= to "
                    "the implementation"
                )
        return "", "", steps[0]["kind"]
    given, path = rules.code(where, source, binary)
    return given, path, "binary" if binary is not None else "source"
