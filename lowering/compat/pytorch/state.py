"""State and memory of eager PyTorch: addresses that the runtime reads, versions, effects."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._C import _len_torch_function_stack
from torch._C._autograd import _profiler_enabled, _saved_tensors_hooks_is_enabled
from torch._C._dynamo.guards import _empty_strided_cpu, _empty_strided_cuda
from torch._C._profiler import _RecordFunctionFast
from torch._library.utils import _c_check_aliasing_constraint

from opaq import _runtime

_libraries: list[torch.library.Library] = []  # a registration lasts as long as its library
_functions: list[Any] = []  # whose addresses were given out


def _unchanged(value: Any) -> Any:
    return value


class State:
    # torch.empty_strided without its overhead
    empty_strided_cpu = staticmethod(_empty_strided_cpu)
    empty_strided_cuda = staticmethod(_empty_strided_cuda)

    # check_no_alias(op, args, kwargs, results, module) raises where a result shares memory with an
    # argument, or another result. module(): where the op's function is defined, for the message.
    check_no_alias = staticmethod(_c_check_aliasing_constraint)

    # whether a profiler is on in this thread
    profiler_is_on = staticmethod(_profiler_enabled)
    # profiler_event(name, (), facts) is a context manager: an event of the profiler, with facts
    # (str by str) that traces show where shapes are recorded
    profiler_event = _RecordFunctionFast

    @contextlib.contextmanager
    def unseen_by_saved_tensor_hooks(self) -> Iterator[None]:
        """What autograd saves in the block is shown to no hooks from outside, such as those of
        torch.utils.checkpoint around a call that compiles."""
        if not _saved_tensors_hooks_is_enabled():
            yield
            return
        with torch.autograd.graph.saved_tensors_hooks(_unchanged, _unchanged):
            yield

    def state_addresses(self) -> dict[str, int]:
        """Addresses of C functions without arguments that return this thread's state: the number of
        active modes (int64_t), whether a profiler is on, whether autograd is on (bool).

        torch's own functions take two nanoseconds; if a torch lacks one, a Python function does it.
        """
        cpu = _loaded("libtorch_cpu.so")
        found = {
            "function_modes": (
                cpu,
                "_ZN2at4impl22PythonTorchFunctionTLS9stack_lenEv",
                ctypes.c_int64,
                _len_torch_function_stack,
            ),
            "profiler_enabled": (
                cpu,
                "_ZN5torch8profiler4impl15profilerEnabledEv",
                ctypes.c_bool,
                _profiler_enabled,
            ),
            "grad_enabled": (
                cpu,
                "aoti_torch_grad_mode_is_enabled",
                ctypes.c_bool,
                torch.is_grad_enabled,
            ),
        }
        return {key: _address(*place) for key, place in found.items()}

    def tensor_reader(self) -> dict[str, int]:
        """How to read a tensor without changing its reference count: the address of
        at::toDLPackNonOwning(at::Tensor, DLTensor*, bool read_only), whose last argument torch 2.11
        does not have and ignores, and the offset in bytes of the at::Tensor in a tensor object.
        Both are 0 if this torch works in another way."""
        cpu = _loaded("libtorch_cpu.so")
        mangled = "_ZN2at17toDLPackNonOwningERKNS_6TensorEP8DLTensor"
        function = getattr(cpu, mangled + "b", None) or getattr(cpu, mangled, None)
        offset = object.__basicsize__
        samples = [torch.empty(0), torch.empty(2, 3)[1], torch.nn.Parameter(torch.empty(1))]
        if function is None or any(
            ctypes.c_void_p.from_address(id(sample) + offset).value != sample._cdata
            for sample in samples
        ):
            return {"read_tensor": 0, "tensor_offset": 0}
        return {
            "read_tensor": ctypes.cast(function, ctypes.c_void_p).value or 0,
            "tensor_offset": offset,
        }

    def storage_id(self, tensor: torch.Tensor) -> int:
        """A number that tensors have in common, fake ones too, exactly if they share memory. Valid
        while one of them is alive.
        """
        return tensor.untyped_storage()._cdata

    def count_mutations(self, overload: Any, positions: Sequence[int]) -> None:
        """Makes calls through the dispatcher increment the version of the arguments that the op
        writes to, so that autograd notices if it has saved them."""
        names = [argument.name for argument in overload._schema.arguments]

        def raise_versions(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            for position in positions:
                value = args[position] if position < len(args) else kwargs.get(names[position])
                for tensor in value if isinstance(value, (list, tuple)) else [value]:
                    if isinstance(tensor, torch.Tensor):
                        _refuse_inference(overload, names[position], tensor)
                        torch.autograd.graph.increment_version(tensor)
            return overload.redispatch(
                keyset & torch._C._after_ADInplaceOrView_keyset, *args, **kwargs
            )

        namespace, name = overload.name().split("::")
        library = torch.library.Library(namespace, "FRAGMENT")
        library.impl(
            name.removesuffix(".default"), raise_versions, "ADInplaceOrView", with_keyset=True
        )
        _libraries.append(library)

    def set_ordered(self, overload: Any, ordered: bool) -> None:
        """ordered: the op has effects that a graph does not show; PyTorch then neither merges,
        reorders, drops nor repeats its calls in compiled graphs."""
        from torch._higher_order_ops.effects import _register_effectful_op
        from torch._library.effects import EffectType

        _register_effectful_op(overload.name(), EffectType.ORDERED if ordered else None)

    def draws(self, overload: Any) -> bool:
        """Whether the op draws random numbers with PyTorch's generators."""
        return torch.Tag.nondeterministic_seeded in overload.tags

    def sympy_functions(self) -> types.SimpleNamespace:
        """floor_div, mod (with Python's sign), minimum, maximum for ints and sympy expressions, in
        the forms that torch can reason about; remainders: the classes of the results of mod."""
        return _sympy_functions()

    def tracer_is_loaded(self) -> bool:
        """Whether Dynamo has been imported: before that nothing has been compiled."""
        return "torch._dynamo" in sys.modules

    def at_most(self, size: Any, bound: Any) -> Any:
        """A symbolic size that is known to be at most another."""
        torch._check(size <= bound)
        return size

    def skip_frames(self, modules: Sequence[str]) -> None:
        """Has Dynamo treat the Python code of these modules and packages as that of
        torch._library: not compiled by itself where an op is called outside of a graph, but part of
        what calls it (a backward pass that is traced)."""
        from torch._dynamo import trace_rules

        for module in modules:
            before = len(trace_rules.SKIP_DIRS)
            trace_rules.add(module)
            trace_rules.get_mod_inlinelist().update(trace_rules.SKIP_DIRS[before:])


def _loaded(name: str) -> ctypes.CDLL:
    """A library that torch has loaded."""
    return ctypes.CDLL(name, mode=os.RTLD_LAZY | os.RTLD_NOLOAD)


def _address(library: ctypes.CDLL, symbol: str, result: Any, python: Callable[[], Any]) -> int:
    function = getattr(library, symbol, None) or ctypes.PYFUNCTYPE(result)(python)
    _functions.append(function)
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _refuse_inference(overload: Any, argument: str, value: torch.Tensor) -> None:
    if value.is_inference() and not torch.is_inference_mode_enabled():
        raise _runtime.LaunchError(
            f"{overload.name()}: argument `{argument}` is an inference tensor and is written "
            "outside torch.inference_mode(), where autograd could not "
            f"notice; call the op in inference mode, or pass a copy (.clone())"
        )


@functools.cache
def _sympy_functions() -> types.SimpleNamespace:
    from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod, PythonMod

    def mod(a: Any, b: Any) -> Any:
        nonnegative = all(
            value >= 0 if isinstance(value, int) else value.is_nonnegative for value in (a, b)
        )
        return (Mod if nonnegative else PythonMod)(a, b)

    return types.SimpleNamespace(
        floor_div=FloorDiv, mod=mod, remainders=(Mod, PythonMod), minimum=Min, maximum=Max
    )
