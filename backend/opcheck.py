"""`opaq.opcheck`: tries an op on one call and its variants, and says what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from . import _runtime
from .op import Op

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def opcheck(op: Op, *args: Any, **kwargs: Any) -> dict[str, str]:
    """Checks an op on a call with these arguments, which are not changed, and on variants of it.

    Returns what each check found, by name: "SUCCESS", or "refused: ..." for a variant that the op
    does not take. Raises opaq.ContractError with every difference that was found.

    test_schema, test_faketensor, ...: those of torch.library.opcheck. reference: results and
    written arguments are those of the op's reference, if it has one. contract: a compiled call
    writes all of its results (their memory is filled with other values before) and nothing else.
    compiled, dynamic: a compiled call gives what eager gives. overwritten: so does one that writes
    results over arguments, if the op has such results (may_overwrite). layout: with transposed,
    strided and offset arguments, one kind for all tensors, the op gives the same. dtype: with all
    floating tensors in another dtype, it gives what its reference gives. cuda: if there is a GPU
    and the op has an implementation for it, it gives there what it gives on the arguments' own
    device. Of an op with effects only the first ones, since equal calls may differ.
    """
    if not isinstance(op, Op):
        raise _runtime.DeclarationError(
            f"opaq.opcheck(...): op: got {op!r} ({type(op).__name__}); expected an opaq.op; for "
            "other ops there is torch.library.opcheck"
        )
    check = _Check(op, args, kwargs)
    try:
        check.values = check.run(op, args, kwargs)
    except _runtime.LaunchError as error:
        raise _runtime.ContractError(f"{op.name} does not take this call: {error}") from error
    check.all()
    if check.problems:
        raise _runtime.ContractError(
            f"{op.name}: {len(check.problems)} of {len(check.found)} checks failed:\n"
            + "\n".join(f"  {name}: {problem}" for name, problem in check.problems.items())
        )
    return check.found


class _Check:
    def __init__(self, op: Op, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.op, self.call = op, (args, dict(kwargs))
        self.found: dict[str, str] = {}
        self.problems: dict[str, str] = {}
        self.values: Any = None  # what eager gives: results and arguments after the call

    def all(self) -> None:
        op = self.op
        for name, result in torch.library.opcheck(op, *self.call, raise_exception=False).items():
            self._note(name, "SUCCESS" if result == "SUCCESS" else str(result))
        if op.effects is not None:
            return  # equal calls may give different values
        self._compare("reference", op.reference_function, self.call, self.values)
        for name, function in self._compiled():
            self._compare(name, function, self.call, self.values)
        self._overwritten()
        for name, change in _LAYOUTS.items():
            self._compare(f"layout: {name}", op, _changed(self.call, change), self.values)
        for dtype in _FLOATS:
            self._other_dtype(dtype)
        self._other_device()

    @staticmethod
    def run(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """(results, arguments after the call) of a call on copies."""
        args, kwargs = _changed((args, kwargs), _copy)
        with torch.no_grad():
            results = function(*args, **kwargs)
        return results, _tensors((args, kwargs))

    def _compiled(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return self.op(*args, **kwargs)

        for name, options in (
            ("compiled", {}),
            ("dynamic", {"dynamic": True}),
            ("contract", {"backend": "opaq", "options": {"check": "contract"}}),
        ):
            torch.compiler.reset()
            yield name, torch.compile(call, fullgraph=True, **options)
        torch.compiler.reset()

    def _overwritten(self) -> None:
        info = self.op.info
        over = {output["over"] for output in info["outputs"]} - {""}
        names = [argument["name"] for argument in info["args"]]

        def call(*args: Any, **kwargs: Any) -> Any:
            given = {**dict(zip(names, args)), **kwargs}
            given.update({name: _computed(given[name]) for name in over})
            positional = [given.pop(name) for name in names[: len(args)]]
            return self.op(*positional, **given)

        if over:
            torch.compiler.reset()
            compiled = torch.compile(call, fullgraph=True)
            self._compare("overwritten", compiled, self.call, self.values)
            torch.compiler.reset()

    def _other_dtype(self, dtype: torch.dtype) -> None:
        reference = self.op.reference_function
        call = _changed(self.call, lambda t: t.to(dtype) if t.is_floating_point() else t)
        if reference is None or all(a is b for a, b in zip(_tensors(call), _tensors(self.call))):
            return
        try:
            expected = self.run(reference, *call)
        except Exception as error:  # noqa: BLE001  (the reference need not take it)
            self._note(f"dtype: {dtype}", f"refused: by the reference: {_first_line(error)}")
            return
        self._compare(f"dtype: {dtype}", self.op, call, expected)

    def _other_device(self) -> None:
        if "cuda" in self.op.device_types and torch.cuda.is_available():
            moved = _changed((self.call, self.values), lambda tensor: tensor.cuda())
            self._compare("cuda", self.op, *moved)

    def _compare(
        self, name: str, function: Callable[..., Any] | None, call: Any, expected: Any
    ) -> None:
        if function is None:
            return
        try:
            got = self.run(function, *call)
        except _runtime.ContractError as error:
            return self._note(name, str(error))
        except Exception as error:  # noqa: BLE001  (every error is a finding)
            refused = isinstance(error, _runtime.LaunchError) and name.startswith(
                ("layout", "dtype")
            )
            return self._note(name, f"{'refused: ' * refused}{_first_line(error)}")
        try:
            torch.testing.assert_close(got, expected, equal_nan=True)
        except AssertionError as error:
            return self._note(name, " ".join(str(error).split()))
        return self._note(name, "SUCCESS")

    def _note(self, name: str, finding: str) -> None:
        self.found[name] = finding
        if finding != "SUCCESS" and not finding.startswith("refused: "):
            self.problems[name] = finding


def _changed(values: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Nested tuples, lists and dicts, with change(tensor) in place of each tensor."""
    if isinstance(values, dict):
        return {key: _changed(value, change) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(_changed(value, change) for value in values)
    return change(values) if isinstance(values, torch.Tensor) else values


def _tensors(values: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    _changed(values, lambda tensor: found.append(tensor) or tensor)
    return found


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _computed(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, as an intermediate of a compiled graph."""
    exact = tensor.dtype in _FLOATS or not tensor.is_floating_point()
    return tensor.neg().neg() if exact and tensor.dtype != torch.bool else tensor


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with the same values, strides and storage offset in memory of its own."""
    span = tensor.untyped_storage().nbytes() // max(1, tensor.element_size())
    memory = torch.zeros(span, dtype=tensor.dtype, device=tensor.device)
    copied = memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return copied.copy_(tensor.detach())


def _offset(tensor: torch.Tensor) -> torch.Tensor:
    memory = tensor.new_zeros(tensor.numel() + 1)
    return memory[1:].view(tensor.shape).copy_(tensor)


def _transposed(tensor: torch.Tensor) -> torch.Tensor:
    return (
        tensor.permute(*reversed(range(tensor.dim())))
        .contiguous()
        .permute(*reversed(range(tensor.dim())))
    )


def _strided(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dim() == 0:
        return tensor
    memory = tensor.new_zeros((*tensor.shape[:-1], 2 * tensor.shape[-1]))
    return memory[..., ::2].copy_(tensor)


_LAYOUTS = {"offset by one": _offset, "transposed": _transposed, "every second element": _strided}
