"""The lowering of every opaque op: chooses implementations, gives the arguments the layouts that
they need, makes the node, and copies back what it writes to copies.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import torch

from opaq import _runtime

from . import (
    alignment,
    counts,
    dynamic_results,
    explained,
    largest_results,
    lists,
    options,
    python_functions,
    record,
    tuned,
    workspace,
)
from .compat import pytorch
from .compat.inductor import V, inductor, ir, tree_leaves
from .cpp_plan import WITHOUT_PYTHON, NoCppForm, check, plan
from .decision import Candidate, Decision, decide, explain_misfit
from .node import OpaqueKernel, PythonFunctionKernel, dispatcher_kernel
from .padded import strides_of_arguments
from .place import place
from .symbolic import SymbolicEvaluator, SymbolicTensor


def install(qualname: str, overload: Any) -> None:
    """Registers the lowering. It reads the op's description at each use, so that a changed op needs
    no second registration.
    """
    if qualname in python_functions:
        if not pytorch.written_names(overload):  # else _placed lays out the arguments
            inductor.use_layout_tag(overload)
        inductor.register_lowering(overload, functools.partial(lower_python, qualname, overload))
    else:
        inductor.register_lowering(overload, functools.partial(lower, qualname, overload))


def install_for(graph: torch.fx.Graph, registered: Container[str]) -> None:
    """Registers the lowering for the objects that a graph calls ops by. The dispatcher keeps those
    of an op that was declared again, which torch.ops does not have any more.
    """
    for node in graph.nodes:
        if node.op == "call_function":
            for value in (node.target, *node.args):
                if pytorch.is_overload(value) and pytorch.op_name(value) in registered:
                    if value not in inductor.lowerings():
                        install(pytorch.op_name(value), value)


def lower(qualname: str, overload: Any, *args: Any, **kwargs: Any) -> Any:
    _runtime.refresh_sources(qualname)
    call = _Call(overload, _runtime.describe(qualname), args, kwargs)
    info, values = call.info, call.values
    traced, outputs = _as_traced(call)
    eager = {name: _symbolic(fake) for name, fake in traced.items()}
    device = _device(eager.values(), outputs)
    padded, outputs = _padded(call, device, traced, outputs)
    results = dynamic_results.whole(info, outputs, lambda: call.largest(traced), device)
    inputs = {
        name: dataclasses.replace(tensor, strides=_numbers(padded.get(name, tensor.strides)))
        for name, tensor in eager.items()
    }
    known = {
        **values,
        **inputs,
        **dict(zip((result["name"] for result in info["results"]), results)),
    }
    language = inductor.wrapper_language()
    archs = _archs(language, device)
    evaluator = SymbolicEvaluator(inductor.known_true, archs)
    _refuse_options(qualname, language)
    if not language:
        return _through_dispatcher(
            call, traced, device, "this wrapper is neither in Python nor in C++"
        )
    if not _runtime.kernel_is_ours(qualname, device.type):
        _refuse_in_package(qualname, device, _another_kernel(device))
        return _through_dispatcher(call, traced, device, _another_kernel(device).reason)
    measured = tuned.fastest(qualname, info, {**known, **eager}, inductor)
    choose = functools.partial(
        decide, info, device.type, known, evaluator, language == "package", measured
    )
    decision = choose()
    if (
        language == "cpp"
        and decision.may_need_reference
        and _guarded(decision.candidates[-1], known, archs)
    ):
        decision = choose()
    if decision.implementation is None and language == "python" and not options.current().strict:
        # Compiling succeeds, and the call raises the error that eager raises.
        return _through_dispatcher(call, traced, device, "; ".join(decision.skipped))
    if language == "python" and call.may_run_python(decision):
        return _through_dispatcher(call, traced, device, "it takes lists, and Python may serve it")
    if language == "package":
        _refuse_without_native(info, device, decision)
    _enforce(info, known, device, decision)
    cpp = None
    if language != "python":
        try:
            cpp = plan(info, device, known, evaluator, decision, language)
        except NoCppForm as error:
            _refuse_in_package(info["name"], device, error)
            return _through_dispatcher(call, traced, device, error.reason)
    buffers, carry_back = place(
        info["name"],
        values,
        traced,
        call.nodes(),
        _written(info),
        decision.contiguous,
        alignment.sensitive_arguments(info),
        padded,
    )
    planned = workspace.plan(decision.candidates, known)
    memory = None if planned is None else planned.buffer(device)
    kernel = OpaqueKernel(info, {**values, **buffers}, results, device, decision, cpp, memory)
    made = [ir.TensorBox.create(result) for result in kernel.results]
    explained.add_launch(kernel.get_operation_name(), info, device, decision, known, planned)
    carry_back()
    if counts.are_read(info):
        made = dynamic_results.shortened(info, made, outputs)
    if len(made) == 1 and _unpacked(overload):
        return made
    return None if not made else made[0] if len(made) == 1 else tuple(made)


def _archs(language: str, device: torch.device) -> tuple[str, ...]:
    """Of the devices that may run the graph; "" where they are those that it is compiled on."""
    chosen = options.current()
    if device.type != "cuda":
        return ("",)
    try:
        here = _runtime.device_arch(device.index or 0)
    except _runtime.MissingError:  # what needs one says so
        here = ""
    if language != "package" and (not chosen.archs or (language == "python" and here)):
        return ("",)
    any_device = "compute_75"  # PTX for the oldest, of which nothing is known
    archs = chosen.archs or (here or any_device,)
    return (*archs, any_device) if chosen.ptx else archs


def _guarded(candidate: Candidate, known: Mapping[str, Any], archs: tuple[str, ...]) -> bool:
    """Has the graph serve only calls that a candidate fits, if it fits the call that is compiled
    for: others are compiled anew, since a C++ wrapper cannot run the reference, which is Python.
    False if it may not fit even so."""
    texts = [each["python"] for each in candidate.implementation["requires"]]
    return all(
        SymbolicEvaluator(holds, archs).evaluate(text, known) is True
        for holds in (inductor.holds_now, inductor.guard)
        for text in texts
    )


def _unpacked(overload: Any) -> bool:
    """Whether the graph takes item 0 of the node's only result, as if it were a tuple. Inductor's
    decomposition of auto_functionalized makes such graphs (2.11 to 2.15) if a written argument is
    None."""
    node = V.graph.current_node
    return (
        node.target is overload
        and bool(node.users)
        and all(user.target is operator.getitem for user in node.users)
    )


def lower_python(qualname: str, overload: Any, *args: Any, **kwargs: Any) -> Any:
    """Lowers an op that is a Python function. If it writes to no argument, Inductor has laid them
    out (use_layout_tag) before it calls this.
    """
    # Inductor takes results for new memory, which it may write to. For results that are written
    # arguments, return these arguments.
    by_name = {
        **dict(zip(pytorch.argument_names(overload), args)),
        **kwargs,
    }
    returned = tuple(by_name[name] for name in pytorch.returned_names(overload))
    args, kwargs, carry_back = _placed(qualname, overload, args, kwargs)
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, ir.TensorBox)]
    device = tensors[0].get_device() if tensors else torch.device("cpu")
    served = python_functions[qualname].devices
    _refuse_options(qualname, inductor.wrapper_language())
    if inductor.wrapper_language() != "python":
        _refuse_in_package(
            qualname,
            device,
            NoCppForm(
                "it is a Python function",
                "declare it by opaq.op with an implementation in CUDA or C++; or by "
                "torch.library.custom_op, for a package that is loaded where Python declares it",
            ),
        )
        if lost := pytorch.results_lost_in_cpp(overload):
            raise _runtime.LaunchError(
                f"{qualname} (node {V.graph.current_node.name}) returns {lost}, which Inductor's "
                "C++ wrapper cannot take; expected tensors, or one result that is a list or a "
                "number; return these, or leave cpp_wrapper out"
            )
        results = _stock(
            qualname, overload, args, kwargs, device, "a Python function has no C++ form"
        )
    elif served is not None and device.type not in served:
        results = _stock(
            qualname,
            overload,
            args,
            kwargs,
            device,
            f"the function is for {', '.join(sorted(served))}",
        )
    elif not _runtime.kernel_is_ours(qualname, device.type):
        results = _stock(qualname, overload, args, kwargs, device, _another_kernel(device).reason)
    else:
        results = PythonFunctionKernel.call(overload, args, kwargs)
        _explain(qualname, device, "python", "")
    carry_back()
    if returned:
        return returned if pytorch.result_count(overload) > 1 else returned[0]
    return results


def _placed(
    qualname: str, overload: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Any, Any, Callable[[], None]]:
    """(arguments, keyword arguments, function to call after the launch). If the op writes, tensors
    become buffers with eager's strides that share memory as in eager.
    """
    if not pytorch.written_names(overload):
        return args, kwargs, lambda: None
    node = V.graph.current_node
    node_args, node_kwargs = (node.args, node.kwargs) if node.target is overload else ((), {})
    traced_args, traced_kwargs = node.meta.get("eager_input_vals") or inductor.fakes_of(
        (node_args, node_kwargs)
    )
    values, nodes, traced = (
        pytorch.leaves_by_argument(overload, *given)
        for given in ((args, kwargs), (node_args, node_kwargs), (traced_args, traced_kwargs))
    )
    eager = {
        key: traced[key]
        if isinstance(traced.get(key), torch.Tensor)
        else inductor.fake_of(ir.ExternKernel.realize_input(value))
        for key, value in values.items()
        if isinstance(value, ir.TensorBox)
    }
    written = {key for key in eager if key[0] in pytorch.written_names(overload)}
    buffers, carry_back = place(qualname, values, eager, nodes, written)
    placed = {
        key: buffer if isinstance(buffer, ir.TensorBox) else ir.TensorBox(buffer)
        for key, buffer in buffers.items()
    }
    return *pytorch.with_leaves(overload, args, kwargs, placed), carry_back


# ---- arguments -----------------------------------------------------------------------------------


class _Call:
    """The call that is lowered. info: of the op, or of its form if it takes lists of tensors.
    values: its arguments by name, in schema order, defaults filled in.
    """

    def __init__(
        self,
        overload: Any,
        declared: _runtime.OpInfo,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        self.overload, self.declared = overload, declared
        self.info, flat = lists.form_of(declared, args, kwargs)
        # its reference is the declared op's
        self.info["has_reference"] = declared["has_reference"]
        self.values: dict[str, Any] = dict(zip((arg["name"] for arg in self.info["args"]), flat))

    def flat(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the overload by the names of `values`."""
        given = {**dict(zip((arg["name"] for arg in self.declared["args"]), args)), **kwargs}
        return lists.flat_names(self.info, given)

    def nodes(self) -> dict[str, Any]:
        """The graph's nodes that are arguments of the call being lowered, by name."""
        node = V.graph.current_node
        return self.flat(node.args, node.kwargs) if node.target is self.overload else {}

    def for_overload(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """(arguments, keyword arguments) with which PyTorch calls the op."""
        flat = [values[arg["name"]] for arg in self.info["args"]]
        return lists.as_called(self.declared, lists.grouped(self.declared, self.info, flat))

    def results(self, traced: Mapping[str, torch.Tensor]) -> list[SymbolicTensor]:
        """What the op returns for these fake tensors."""
        if not self.info["outputs"]:
            return []
        args, kwargs = self.for_overload({**self.values, **traced})
        with V.fake_mode:
            results = self.overload(*args, **kwargs)
        results = results if isinstance(results, (tuple, list)) else (results,)
        return [_symbolic(result) for result in results]

    def largest(self, traced: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """The results on fake tensors, with bounds in place of sizes that only a launch knows."""
        args, kwargs = self.for_overload({**self.values, **traced})
        with V.fake_mode:
            results = largest_results[self.declared["name"]]()(*args, **kwargs)
        return list(results) if isinstance(results, tuple) else [results]

    def may_run_python(self, decision: Decision) -> bool:
        """Whether it has lists, which Python functions take as they are, and a launch may choose
        one.
        """
        return self.info is not self.declared and (
            not all(candidate.implementation["native"] for candidate in decision.candidates)
            or (self.declared["has_reference"] and not decision.always_fits)
        )


def _as_traced(call: _Call) -> tuple[dict[str, torch.Tensor], list[SymbolicTensor]]:
    """(tensor arguments as fake tensors, results), with the layouts that they have in eager and the
    traced graph records. Inductor's buffers may have other layouts.
    """
    values = call.values
    tensors = [name for name, value in values.items() if isinstance(value, ir.TensorBox)]
    target, node_args, node_kwargs, results = inductor.called_by(V.graph.current_node)
    fakes: dict[str, Any] = {}
    if target is call.overload:
        fakes = {
            name: value.meta.get("val") if isinstance(value, torch.fx.Node) else value
            for name, value in call.flat(node_args, node_kwargs).items()
        }
    else:
        results = None
    for name in tensors:
        # A pass that makes a node may record nothing; then the layout is Inductor's.
        if not isinstance(fakes.get(name), torch.Tensor):
            values[name].realize()
            fakes[name] = inductor.fake_of(ir.ExternKernel.realize_input(values[name]))
    traced = {name: fakes[name] for name in tensors}
    if results is None or not call.info["outputs"]:
        return traced, call.results(traced)
    results = results if isinstance(results, (tuple, list)) else (results,)
    return traced, [_symbolic(result) for result in results]


def _padded(
    call: _Call,
    device: torch.device,
    traced: Mapping[str, torch.Tensor],
    outputs: list[SymbolicTensor],
) -> tuple[dict[str, list[Any]], list[SymbolicTensor]]:
    """(the strides of the arguments that are taken as Inductor has padded them, the results then).
    Results have eager's strides but for those that follow from such an argument's by the op's rule
    and that Inductor may pad.
    """
    if counts.are_read(call.info):
        return {}, outputs
    tags = call.overload.tags
    padded = strides_of_arguments(call.info, tags, device.type, call.values, traced)
    if not padded:
        return {}, outputs
    fakes = {name: inductor.fake_of(call.values[name]) for name in padded}
    results = call.results({**traced, **fakes})
    for number, (result, eager) in enumerate(zip(results, outputs)):
        alike = dataclasses.replace(result, strides=eager.strides) == eager
        if result != eager and not (alike and inductor.pads_result(number)):
            return {}, outputs
    return padded, results


def _written(info: _runtime.OpInfo) -> set[str]:
    return {arg["name"] for arg in info["args"] if arg["mutated"]}


def _symbolic(fake: torch.Tensor) -> SymbolicTensor:
    return SymbolicTensor(_numbers(fake.shape), _numbers(fake.stride()), fake.dtype, fake.device)


def _numbers(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(int(e) if e.is_Integer else e for e in inductor.expressions(values))


def _device(inputs: Iterable[SymbolicTensor], outputs: Sequence[SymbolicTensor]) -> torch.device:
    """The CUDA device if any tensor is on one (tensors on the CPU are then scalars), else the
    device of the first tensor.
    """
    devices = [tensor.device for tensor in (*inputs, *outputs)]
    return next(
        (device for device in devices if device.type == "cuda"),
        devices[0] if devices else torch.device("cpu"),
    )


# ---- ways to run ---------------------------------------------------------------------------------


def _enforce(
    info: _runtime.OpInfo, known: Mapping[str, Any], device: torch.device, decision: Decision
) -> None:
    first = next((i["name"] for i in info["implementations"] if i["device"] == device.type), None)
    strict = options.current().strict
    node = V.graph.current_node.name
    if decision.measured.implementation:
        misfit = any(line.startswith(f"{first}: ") for line in decision.skipped)
    else:
        misfit = decision.implementation != first
    if decision.implementation is None or (strict and misfit):
        raise _runtime.LaunchError(explain_misfit(info, node, str(device), known, decision))
    why = decision.reason and f"; {decision.reason}"
    record.log.debug(
        "%s (node %s, %s): %s%s", info["name"], node, device, decision.implementation, why
    )


def _refuse_without_native(info: _runtime.OpInfo, device: torch.device, decision: Decision) -> None:
    """Raises LaunchError if only implementations that cannot go into a package could serve the
    node.
    """
    if decision.implementation is None and not all(
        i["native"] for i in info["implementations"] if i["device"] == device.type
    ):
        why = NoCppForm("; ".join(decision.skipped), WITHOUT_PYTHON)
        _refuse_in_package(info["name"], device, why)


def check_packaged(
    overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
) -> None:
    """Raises NoCppForm where a call of an op in a graph, with fake tensors, could not go into a
    package, or a launch there might find no implementation that fits."""
    qualname = pytorch.op_name(overload)
    if qualname in python_functions:
        raise NoCppForm("it is a Python function", "")
    call = _Call(overload, _runtime.describe(qualname), args, kwargs)
    tensors = {k: each for k, each in call.values.items() if isinstance(each, torch.Tensor)}
    inputs = {name: _symbolic(tensor) for name, tensor in tensors.items()}
    outputs = [_symbolic(each) for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
    known = {**call.values, **inputs}
    known |= zip((each["name"] for each in call.info["results"]), outputs)
    device = _device(inputs.values(), outputs)
    if not _runtime.kernel_is_ours(qualname, device.type):
        raise _another_kernel(device)
    evaluator = SymbolicEvaluator(inductor.known_of(tensors.values()), _archs("package", device))
    decision = decide(call.info, device.type, known, evaluator, packaged=True)
    check(call.info, device, known, evaluator, decision, "package")
    if not decision.always_fits:
        conditions = [each for found in decision.candidates for each in found.conditions]
        unknown = f"{', '.join(conditions)} is known at each launch only"
        raise NoCppForm("; ".join([*decision.skipped, unknown]), "")


def _another_kernel(device: torch.device) -> NoCppForm:
    return NoCppForm(
        f"another kernel is registered for it on {device.type}",
        "package it in a process that does not register that kernel",
    )


def _refuse_options(qualname: str, language: str) -> None:
    """Raises DeclarationError for options that only Python wrappers have."""
    if options.current().nvtx and language != "python":
        raise _runtime.DeclarationError(
            f'{qualname} (node {V.graph.current_node.name}): the option "nvtx" is for Inductor\'s '
            "Python wrapper, and this graph is compiled to another form; leave it out, set "
            'Inductor\'s option "cpp.enable_kernel_profile", and run the model under '
            "torch.autograd.profiler.emit_nvtx()"
        )
    if options.current().check and language != "python":
        raise _runtime.DeclarationError(
            f"{qualname} (node {V.graph.current_node.name}): the contract check looks at "
            "launches of Inductor's Python wrapper, and this graph is compiled "
            "to another form; leave cpp_wrapper and packaging out, or the option check "
            "(OPAQ_CHECK)"
        )


def _refuse_in_package(qualname: str, device: torch.device, error: NoCppForm) -> None:
    """Raises LaunchError in a package: the op is not declared where a package is loaded, so that
    the dispatcher cannot be called.
    """
    if inductor.wrapper_language() == "package":
        node = V.graph.current_node.name
        raise _runtime.LaunchError(
            f"{qualname} (node {node}, {device}) cannot go into a package: {error.reason}; "
            f"{error.remedy}"
        )


def _through_dispatcher(
    call: _Call, traced: Mapping[str, torch.Tensor], device: torch.device, why: str
) -> Any:
    """Inductor's own call of the dispatcher, with arguments that have exactly eager's strides."""
    buffers, carry_back = place(
        call.info["name"],
        call.values,
        traced,
        call.nodes(),
        _written(call.info),
        aligned=alignment.sensitive_arguments(call.info),
    )
    args, kwargs = call.for_overload(
        {
            **call.values,
            **{
                name: buffer if isinstance(buffer, ir.TensorBox) else ir.TensorBox(buffer)
                for name, buffer in buffers.items()
            },
        }
    )
    results = _stock(call.info["name"], call.overload, args, kwargs, device, why)
    carry_back()
    return results


def _stock(
    qualname: str,
    overload: Any,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    device: torch.device,
    why: str,
) -> Any:
    node, reason = V.graph.current_node.name, f"{why}: Inductor's stock call"
    _explain(qualname, device, "dispatcher", reason)
    if inductor.wrapper_language() == "cpp":
        return dispatcher_kernel(qualname, reason).call(overload, args, kwargs)
    if not explained.collecting():  # else it is no node of a compiled graph
        record.add(
            record.NodeRecord(
                inductor.graph_label(), node, qualname, str(device), "dispatcher", reason
            )
        )
    return inductor.stock_fallback(overload, args, kwargs)


def _explain(op: str, device: torch.device, implementation: str, reason: str) -> None:
    node = V.graph.current_node.name
    explained.add(
        explained.LoweredNode(node, op, str(device), explained.place(), implementation, reason)
    )
