"""Parts of a declaration: rules for outputs, and code from files."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from . import _runtime, validate
from .validate import File, expressions, flag, refuse


@dataclass(frozen=True)
class Output:
    """Rule for one output, as texts in opaq's expression language; "" where not given."""

    like: str = ""
    shape: str = ""
    dtype: str = ""
    strides: str = ""
    device: str = ""
    partial: bool = False
    may_overwrite: bool = False
    counts: dict[str, str] = field(default_factory=dict)


def like(
    argument: str,
    *,
    dtype: object = "",
    shape: object = "",
    strides: object = "",
    partial: bool = False,
    may_overwrite: bool = False,
    counts: Mapping[str, object] | None = None,
) -> Output:
    """An output with the shape, dtype and device of `argument`, row-major.

    dtype, shape, strides (in elements): replace those. like("x", dtype="float32") has x's shape and
    is float32. partial: implementations may leave elements unwritten; the contract check allows it.
    counts: as for opaq.tensor.

    may_overwrite: a promise that every implementation is right too when the output is `argument`
    itself, the same memory: it reads an element of the argument before it writes that element of
    the output, and no thread reads what another one may have written (and no pointer to either is
    `__restrict__`). A compiled graph then gives the output the memory of the argument, instead of
    memory of its own, where the argument is an intermediate that nothing reads afterwards. In eager
    mode an output always has memory of its own. Not with shape or dtype, for an argument that the
    schema declares as written, or for two outputs like one argument.

    Raises opaq.DeclarationError.
    """
    where = "opaq.like(...)"
    _name(where, "argument", argument)
    return Output(
        like=argument,
        shape=sizes_text(where, "shape", shape),
        dtype=dtype_text(where, dtype),
        strides=sizes_text(where, "strides", strides),
        partial=flag(where, "partial", partial),
        may_overwrite=flag(where, "may_overwrite", may_overwrite),
        counts=counts_texts(where, counts),
    )


def tensor(
    shape: object,
    *,
    dtype: object,
    strides: object = "",
    device: str = "",
    partial: bool = False,
    counts: Mapping[str, object] | None = None,
) -> Output:
    """An output of the given shape and dtype; row-major unless `strides` (in elements) are given.

    shape: "x.size(0), 2 * y.size(-1)", or a sequence of ints and expressions; "x.shape[:-1]" stands
    for several sizes. dtype: a torch.dtype, its name, or an expression such as "x.dtype". device:
    the tensor argument whose device the output shares; by default the first. For an op whose calls
    may have no tensor, it is required: the name of an argument of type Device (None: that of the
    first tensor given, or the CPU), or "cpu", "cuda" (the current one), "cuda:1". partial:
    implementations may leave elements unwritten; the contract check allows it.

    counts: sizes that only the implementation knows, each with the largest that it can be: shape
    "n, 3" with counts={"n": "x.numel()"}. Memory is allocated for the bound. The implementation
    writes the count to `n`, the address of one int64 in its arguments. If `n` is also a result in
    the schema, it is a 0-d tensor of int64, the other results keep the bound as their size, and
    nothing waits for the device. If it is not, the count is read when the launch has ended, and
    results are views of what was written; such an op is not part of CUDA graphs, and compiled
    graphs need torch._dynamo.config.capture_dynamic_output_shape_ops. All results of an op share
    its counts. Raises opaq.DeclarationError.
    """
    where = "opaq.tensor(...)"
    if not isinstance(device, str):
        refuse(
            where,
            "device",
            device,
            "the name of the tensor argument whose device the output shares, or for an op without "
            'one, that of an argument of type Device, or a device, as in "cuda"',
        )
    return Output(
        shape=sizes_text(where, "shape", shape),
        dtype=dtype_text(where, dtype),
        strides=sizes_text(where, "strides", strides),
        device=device,
        partial=flag(where, "partial", partial),
        counts=counts_texts(where, counts),
    )


def file(path: str | os.PathLike[str]) -> File:
    """Code from a file, for `source` or `binary`. A relative path begins at the folder of the
    module that calls this. The file is read by the declaration, which raises opaq.DeclarationError
    if it cannot be.
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        refuse("opaq.file(...)", "path", path, "a path (str or pathlib.Path)")
    path = os.fspath(path)
    if not path or "\n" in path or "\0" in path:
        refuse(
            "opaq.file(...)",
            "path",
            path,
            'the path of a file; code itself is given as source="..."',
        )
    if not os.path.isabs(path):
        caller = sys._getframe(1).f_globals.get("__file__")
        path = os.path.join(
            os.path.dirname(os.path.abspath(caller)) if caller else os.getcwd(), path
        )
    return File(os.path.normpath(path))


def output_texts(where: str, outputs: Output | Mapping[str, Output] | None) -> list[dict[str, str]]:
    """Rules by result name, as _runtime.define takes them; one rule alone is that of a single
    result."""
    if outputs is None:
        return []
    rules = {"": outputs} if isinstance(outputs, Output) else outputs
    if not isinstance(rules, Mapping) or not all(
        isinstance(key, str) and isinstance(rule, Output) for key, rule in rules.items()
    ):
        refuse(
            where,
            "outputs",
            outputs,
            "opaq.like(...), opaq.tensor(...), or a dict of them by result name, such as {'y': "
            "opaq.like('x')}",
        )
    return [{"name": key, **vars(rule)} for key, rule in rules.items()]


def code(
    where: str, source: object, binary: object = None, takes: tuple[str, ...] = ()
) -> tuple[str | bytes, str]:
    """(code, path of the file that it came from). takes: what may give it, for errors."""
    if (source is None) == (binary is None):
        both = takes or (("source=", "binary=") if where.endswith(".cuda(...)") else ("source=",))
        accepted = f"either {' or '.join(both)}" if len(both) > 1 else both[0]
        raise _runtime.DeclarationError(
            f"{where}: takes {accepted}; got {'none' if source is None else 'both'}"
        )
    if isinstance(binary, Mapping):
        images = validate.images(where, binary)
        return _joined(
            where, lambda: _runtime.image_set([(arch, *_content(where, i)) for arch, i in images])
        ), ""
    if isinstance(binary, (list, tuple)):
        path, content = _content(where, validate.binaries(where, binary))
        return content, path
    if source is None:
        path, content = _read(where, validate.binary(where, binary))
        return content, path
    given = validate.source(where, source)
    if not isinstance(given, File):
        return given, ""
    path, content = _read(where, given)
    try:
        return content.decode(), path
    except UnicodeDecodeError as error:
        raise _runtime.DeclarationError(
            f"{where}: {given} is not UTF-8 text: byte {error.start}; give a compiled kernel as "
            "binary=, and save source as UTF-8"
        ) from error


class _NotGiven:
    def __repr__(self) -> str:
        return "1"


NOT_GIVEN = _NotGiven()  # the default of a grid and of a block
_FORGOTTEN = {
    "grid": 'one block is launched; say how many, as in grid="ceil_div(x.numel(), 256)", or grid=1',
    "block": "a block has one thread; say how many, as in block=256, or block=1",
}


def launch_size(where: str, parameter: str, value: object, steps: object) -> str:
    """The grid or the block of a kernel; one, with a warning, where it was not given. Each of the
    steps has its own."""
    if not isinstance(value, _NotGiven):
        return expressions(where, parameter, value)
    if not steps:
        told = f"{where}: {parameter} is not given: {_FORGOTTEN[parameter]}"
        warnings.warn(told, stacklevel=3)
    return "1"


def _read(where: str, given: bytes | File) -> tuple[str, bytes]:
    """(path of the file, "" for bytes; content)."""
    if not isinstance(given, File):
        return "", given
    try:
        with open(given, "rb") as stream:
            return str(given), stream.read()
    except OSError as error:
        raise _runtime.DeclarationError(
            f"{where}: cannot read {given}: {error.strerror}"
        ) from error


def _content(where: str, given: bytes | File | list[bytes | File]) -> tuple[str, bytes]:
    """As _read, of a list that is linked together, too."""
    if not isinstance(given, list):
        return _read(where, given)
    return "", _joined(where, lambda: _runtime.link_inputs([_read(where, i) for i in given]))


def _joined(where: str, join: Callable[[], bytes]) -> bytes:
    """Several binaries as one code; errors name the place."""
    try:
        return join()
    except _runtime.DeclarationError as error:
        text = str(error)
        raise _runtime.DeclarationError(
            text if text.startswith(where) else f"{where}: {text}"
        ) from None


def _name(where: str, parameter: str, value: object) -> None:
    if not isinstance(value, str) or isinstance(value, File):
        refuse(where, parameter, value, 'the name of a tensor argument, as in opaq.like("x")')


def sizes_text(where: str, parameter: str, value: object) -> str:
    """Sizes or strides: an expression, an int, or a sequence of them."""
    if isinstance(value, (list, tuple)) and not value:
        return "[]"  # the shape of a 0-d tensor
    return expressions(where, parameter, value)


def counts_texts(where: str, value: Mapping[str, object] | None) -> dict[str, str]:
    """Bounds by the names of counts."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        refuse(where, "counts", value, 'a dict of bounds by name, such as {"n": "x.numel()"}')
    return {name: expressions(where, f"counts[{name!r}]", bound) for name, bound in value.items()}


def dtype_text(where: str, value: Any) -> str:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if not isinstance(value, str) or isinstance(value, File):
        # a dtype of NumPy's, or Python's float
        name = getattr(value, "__name__", None) or getattr(value, "name", None)
        hint = (
            f"; write dtype={name!r}"
            if isinstance(name, str) and isinstance(getattr(torch, name, None), torch.dtype)
            else ""
        )
        refuse(
            where,
            "dtype",
            value,
            f"a torch.dtype, its name, or an expression such as 'x.dtype'{hint}",
        )
    return value.removeprefix("torch.")
