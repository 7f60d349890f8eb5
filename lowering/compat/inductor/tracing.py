"""Tracing that leaves nothing behind: Dynamo runs on fake copies, and its state is put back."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch._dynamo import config, convert_frame, pgo, utils
from torch._dynamo.eval_frame import OptimizedModule, innermost_backend
from torch._dynamo.guards import DeletedGuardManagerWrapper
from torch._dynamo.symbolic_convert import InstructionTranslatorBase
from torch._functorch import config as functorch_config
from torch._guards import TracingContext, detect_fake_mode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv
from torch.overrides import TorchFunctionMode

Place = tuple[str, int, str]  # file, line, function

_eval_frame = torch._C._dynamo.eval_frame


@dataclasses.dataclass(frozen=True)
class CompiledWith:
    """Arguments of torch.compile."""

    options: dict[str, Any] | None = None  # options and mode of backend="opaq"
    mode: str | None = None
    patches: dict[str, Any] = dataclasses.field(default_factory=dict)  # of Inductor's options
    dynamic: bool | None = None
    fullgraph: bool = False


class Tracing:
    def fake_run(self, on_eager_call: Callable[[Any], None] = lambda _: None) -> FakeRun:
        """In its mode tensors have no values. Real tensors count as fake ones, which are then
        written to in their place. on_eager_call: called with the overload of each op that is called
        outside of graphs.
        """
        return FakeRun(on_eager_call)

    def fake_copy(self, value: Any, fake_mode: FakeTensorMode, device: Callable[[Any], Any]) -> Any:
        """A deep copy in which each tensor is a fake one on device(tensor)."""
        with _FakeCopies(fake_mode, device):
            return copy.deepcopy(value)

    def fake_beside(self, tensor: torch.Tensor, others: Sequence[Any]) -> torch.Tensor:
        """A fake copy of a tensor that goes with the fake ones among `others`; itself if there are
        none."""
        mode = detect_fake_mode(others)
        return mode.from_tensor(tensor) if mode is not None else tensor

    def compiled_with(self, model: Any) -> tuple[Any, CompiledWith]:
        """(the model, how torch.compile was told to compile it), if it has been compiled."""
        if isinstance(model, OptimizedModule):
            context, model = model.dynamo_ctx, model._orig_mod
        elif hasattr(model, "_torchdynamo_orig_callable"):
            context = inspect.getclosurevars(model).nonlocals["self"]
            model = model._torchdynamo_orig_callable
        else:
            return model, CompiledWith()
        backend = innermost_backend(context.callback)
        ours = getattr(backend, "compiler_name", "") == "opaq"
        given = backend.kwargs if ours else {}
        return model, CompiledWith(
            given.get("options"),
            given.get("mode"),
            dict(getattr(backend, "config", {})),
            getattr(backend, "dynamic", None),
            bool(context.fullgraph),
        )

    def trace(
        self,
        model: Any,
        args: Any,
        kwargs: Any,
        backend: Callable[..., Any],
        dynamic: bool | None = None,
        fullgraph: bool = False,
    ) -> None:
        """Calls the model as torch.compile does, with a backend that compiles backward graphs with
        the forward ones.
        """
        with functorch_config.patch(
            force_non_lazy_backward_lowering=True, enable_autograd_cache=False
        ):
            torch.compile(model, backend=backend, dynamic=dynamic, fullgraph=fullgraph)(
                *args, **kwargs
            )

    @contextlib.contextmanager
    def nothing_left(self, breaks: dict[Place, str]) -> Iterator[None]:
        """What Dynamo learns and compiles in the block does not affect later compilations. `breaks`
        gets the reasons of graph breaks, and of functions that Dynamo leaves uncompiled, by place.
        """
        found: dict[types.CodeType, list[Any]] = {}  # with what was compiled of it before
        log_graph_break = InstructionTranslatorBase.log_graph_break

        def note_break(self: Any, options: Any, reason: str, exc: Any) -> None:
            breaks.setdefault(_place(getattr(exc, "real_stack", None)), reason)
            log_graph_break(self, options, reason, exc)

        def note(code: types.CodeType, _: types.CodeType) -> None:
            found.setdefault(code, _entries(code))

        hook = convert_frame.register_bytecode_hook(note)
        counters = copy.deepcopy(utils.counters)
        reasons = list(utils.graph_break_reasons)
        sizes = pgo._CODE_STATE, pgo._INIT_CODE_STATE  # from which automatic dynamic shapes come
        pgo._CODE_STATE, pgo._INIT_CODE_STATE = copy.deepcopy(sizes)
        try:
            with (
                config.patch(caching_precompile=False),
                mock.patch.object(pgo, "put_local_code_state", lambda *_: None),
                mock.patch.object(pgo, "put_remote_code_state", lambda *_: None),
                mock.patch.object(InstructionTranslatorBase, "log_graph_break", note_break),
            ):
                yield
        finally:
            hook.remove()
            for each in utils.graph_break_reasons[len(reasons) :]:
                breaks[_place(each.user_stack)] = each.reason
            pgo._CODE_STATE, pgo._INIT_CODE_STATE = sizes
            utils.graph_break_reasons[:] = reasons
            utils.counters.clear()
            utils.counters.update(counters)
            for code, before in found.items():
                _forget(code, before)

    def needs_values(self, error: BaseException) -> bool:
        """Whether code asked a fake tensor for its values, or for a size that depends on them."""
        return isinstance(
            error,
            (
                DataDependentOutputException,
                DynamicOutputShapeException,
                GuardOnDataDependentSymNode,
            ),
        )


class FakeRun:
    """A fake mode that tells which ops are called outside of graphs. (Torch has rules for the class
    of a mode, so this has one instead of being one.)
    """

    def __init__(self, on_eager_call: Callable[[Any], None]) -> None:
        self.mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        self._in_graph = False
        dispatch = self.mode.dispatch

        def dispatch_and_tell(function: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._in_graph and TracingContext.try_get() is None:
                on_eager_call(function)
            return dispatch(function, *args, **kwargs)

        self.mode.dispatch = dispatch_and_tell  # type: ignore[method-assign]

    @contextlib.contextmanager
    def in_graph(self) -> Iterator[None]:
        """The ops that are called in the block are those of a graph."""
        before, self._in_graph = self._in_graph, True
        try:
            with self.mode:
                yield
        finally:
            self._in_graph = before


def _place(stack: Any) -> Place:
    frame = stack[-1] if stack else None
    return (frame.filename, frame.lineno or 0, frame.name) if frame else ("", 0, "")


class _FakeCopies(TorchFunctionMode):
    """Makes copy.deepcopy() copy tensors as fake ones."""

    def __init__(self, fake_mode: FakeTensorMode, device: Callable[[Any], Any]) -> None:
        super().__init__()
        self._fake_mode, self._device = fake_mode, device

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self._fake(tensor)
            return memo[id(tensor)]
        if function is torch._C.TensorBase.clone:  # called by Parameter.__deepcopy__
            return self._fake(args[0])
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    def _fake(self, tensor: torch.Tensor) -> torch.Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            fake = self._fake_mode.from_tensor(tensor, static_shapes=True)
            device = self._device(tensor)
            if fake.device != device:
                with in_kernel_invocation_manager(self._fake_mode):
                    meta = fake.detach()  # in the same memory, as tensors that share it must stay
                fake = FakeTensor(self._fake_mode, meta, device).requires_grad_(fake.requires_grad)
        for name, value in vars(tensor).items():
            if name.startswith("_dynamo_"):  # mark_dynamic and the like
                setattr(fake, name, copy.copy(value))
        return fake


def _entries(code: types.CodeType) -> list[Any]:
    """What Dynamo has compiled of a function or of a part of one."""
    return list(_eval_frame._debug_get_cache_entry_list(code))


def _forget(code: types.CodeType, before: list[Any]) -> None:
    """Removes what was compiled of it since there was `before`."""
    if not before:
        _eval_frame.reset_code(code)
        return
    for entry in _entries(code):
        guards = entry.guard_manager
        if entry not in before and guards.extra_state is not None:
            guards.extra_state.invalidate(entry, DeletedGuardManagerWrapper("opaq.explain is done"))
