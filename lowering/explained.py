"""Lowers the graphs of a model without compiling them, and keeps what was decided for each opaque
node: what opaq.explain() shows.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from opaq import _runtime, call_site

from . import options
from .compat import pytorch

if TYPE_CHECKING:
    from opaq._runtime import FakeArgument, OpInfo

    from .decision import Decision
    from .record import Substitution
    from .workspace import Workspace


@dataclasses.dataclass(frozen=True)
class LoweredNode:
    """One opaque node. What follows `reason` is None for a call of a Python function or through the
    dispatcher.
    """

    node: str
    op: str
    device: str
    place: str  # "model.py:12, in forward": the line of user code; "" where it is not known
    # its name, "reference", "python", or "dispatcher" (Inductor's own call of the op)
    implementation: str
    reason: str  # of a call through the dispatcher
    info: OpInfo | None = None  # of the op, or of its form if it takes lists
    decision: Decision | None = None
    arguments: Mapping[str, str] | None = None  # their texts, by name
    example: Sequence[FakeArgument] | None = None  # arguments at likely sizes
    # bytes; a text where it depends on sizes that only a launch knows
    workspace: int | str | None = None


@dataclasses.dataclass
class LoweredGraph:
    name: str  # as the logs of torch have it: "model__0_inference_0"
    kind: str  # "forward", "backward" or "inference"
    nodes: list[LoweredNode] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Traced:
    """A model that was traced and lowered, as far as that was possible."""

    graphs: list[LoweredGraph]
    breaks: list[tuple[str, str]]  # (place, reason) of each graph break
    # by op and place: how often an opaque op was called outside of graphs
    eager: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    # the places that compute what a pattern does
    substitutions: list[Substitution] = dataclasses.field(default_factory=list)
    # why graphs may be missing
    remarks: list[str] = dataclasses.field(default_factory=list)
    error: Exception | None = None  # at which tracing failed


_graph: contextvars.ContextVar[LoweredGraph | None] = contextvars.ContextVar(
    "opaq_lowered_graph", default=None
)


def collecting() -> bool:
    """Whether the graph being lowered is only explained."""
    return _graph.get() is not None


def add(node: LoweredNode) -> None:
    """Keeps a node if the graph being lowered is only explained."""
    if (graph := _graph.get()) is not None:
        graph.nodes.append(node)


def add_launch(
    node: str,
    info: OpInfo,
    device: torch.device,
    decision: Decision,
    known: Mapping[str, Any],
    planned: Workspace | None,
) -> None:
    """The same for a launch. known: as for decide(). planned: the node's workspace."""
    if not collecting():
        return
    from .cpp_plan import likely_arguments

    unplanned = planned is None and any(c.implementation["scratch"] for c in decision.candidates)
    add(
        LoweredNode(
            node,
            info["name"],
            str(device),
            place(),
            decision.implementation or "",
            "",
            info,
            decision,
            {arg["name"]: str(known[arg["name"]]) for arg in info["args"]},
            likely_arguments(info, known),
            "known at each launch only"
            if unplanned
            else 0
            if planned is None
            else _number(planned.bytes),
        )
    )


def place() -> str:
    """The line of user code that the node being lowered comes from."""
    from .compat.inductor import V

    return call_site.of_trace(V.graph.current_node.meta.get("stack_trace"))


def _number(value: Any) -> int | str:
    try:
        return int(value)
    except TypeError:  # symbolic
        return str(value)


def trace(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    settings: Mapping[str, Any],
    patches: dict[str, Any],
    dynamic: bool | None,
    fullgraph: bool,
    changed: Callable[..., Any],
) -> Traced:
    """Traces model(*args, **kwargs) on fake copies of its tensors and lowers all graphs. Tensors on
    the device "meta" stand for tensors on the default device. Leaves nothing behind that would
    affect later compilations.

    settings: our options. patches: changes to Inductor's. dynamic, fullgraph: as for torch.compile.
    changed: as opaq.compiler has it.
    """
    from . import activate, registered
    from .compat.inductor import inductor
    from .substitute import apply

    activate()
    found = Traced([], [])

    def count(overload: Any) -> None:
        if (name := pytorch.op_name(overload)) in registered:
            found.eager[name, call_site.find()] += 1

    fakes = inductor.fake_run(count)
    try:
        copied = _copy(model, args, kwargs, fakes.mode)
    except Exception as error:
        raise _runtime.Error(
            "opaq.explain calls a copy of the model and its arguments, but copying them raised "
            f"{type(error).__name__}: {error}; copy.deepcopy(model) has to work"
        ) from error
    # autograd asks the driver about streams
    without_gradients = copied.on_cuda and not torch.cuda.is_available()
    if without_gradients and copied.requires_grad and torch.is_grad_enabled():
        found.remarks.append(
            "backward graphs are not shown, and forward graphs are those without gradients: "
            "autograd needs a GPU for tensors on cuda, and there is none here"
        )

    @contextlib.contextmanager
    def lowering(kind: str) -> Iterator[None]:
        graph = LoweredGraph(inductor.graph_label(), kind)
        token = _graph.set(graph)
        try:
            with options.use(**settings):
                yield
        finally:
            _graph.reset(token)
        found.graphs.append(graph)

    def backend(graph_module: Any, inputs: Sequence[Any]) -> Any:
        def lowered(inputs: Sequence[Any]) -> Any:
            return inductor.lower_fx(graph_module, inputs, patches, lowering, fakes)

        with inductor.pretend_cuda(), apply.collected() as substitutions:
            called = changed(graph_module, inputs, settings, lowered)
        found.substitutions += substitutions
        return called

    settings = {**settings, "check": ""}  # which would keep traced graphs
    if settings.get("tune") == "search":  # which would run kernels
        settings["tune"] = "stored"
    breaks: dict[Any, str] = {}
    with inductor.nothing_left(breaks):
        try:
            with fakes.mode, torch.no_grad() if without_gradients else contextlib.nullcontext():
                inductor.trace(
                    copied.model, copied.args, copied.kwargs, backend, dynamic, fullgraph
                )
        except Exception as error:
            if inductor.needs_values(error):
                found.remarks.append(
                    f"tracing ended at {call_site.of_error(error) or 'code'} that needs the value "
                    "of a tensor: what comes after it is not shown"
                )
            else:
                found.error = error
    found.breaks = [
        (file and call_site.text(file, line, function), reason)
        for (file, line, function), reason in breaks.items()
    ]
    return found


@dataclasses.dataclass(frozen=True)
class _Copy:
    """A model and its arguments, with fake tensors."""

    model: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    on_cuda: bool  # whether a tensor is
    requires_grad: bool  # whether one does


def _copy(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], fake_mode: Any) -> _Copy:
    from .compat.inductor import inductor

    with fake_mode:
        default = torch.empty(0).device  # torch.get_default_device() needs a GPU for "cuda"
    devices, differentiable = set(), False

    def device_of(tensor: torch.Tensor) -> torch.device:
        nonlocal differentiable
        differentiable = differentiable or tensor.requires_grad
        device = default if tensor.device.type == "meta" else tensor.device
        devices.add(device.type)
        return device

    around = _taken_from_around(model)
    modules = [value for value in (model, *around.values()) if isinstance(value, torch.nn.Module)]
    differentiable = any(p.requires_grad for each in modules for p in each.parameters())
    model, args, kwargs, around = inductor.fake_copy(
        (model, args, kwargs, around), fake_mode, device_of
    )
    return _Copy(_with_cells(model, around), args, kwargs, "cuda" in devices, differentiable)


def _taken_from_around(function: Any) -> dict[int, Any]:
    """The modules and tensors in a function's closure, by the number of their cell."""
    cells = function.__closure__ or () if isinstance(function, types.FunctionType) else ()
    found = {}
    for number, cell in enumerate(cells):
        with contextlib.suppress(ValueError):  # an empty cell
            if isinstance(cell.cell_contents, (torch.nn.Module, torch.Tensor)):
                found[number] = cell.cell_contents
    return found


def _with_cells(function: Any, contents: Mapping[int, Any]) -> Any:
    """The function with other contents of some cells."""
    if not contents:
        return function
    cells = tuple(
        types.CellType(contents[number]) if number in contents else cell
        for number, cell in enumerate(function.__closure__)
    )
    copied = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
    )
    copied.__kwdefaults__, copied.__qualname__ = function.__kwdefaults__, function.__qualname__
    return copied
