"""What Inductor's generated wrappers import: the launch objects of one compiled graph.

A wrapper's header, written by `python_wrapper`, reads

    from opaq.lowering.generated import Graph as OpaqGraph
    opaq_graph = OpaqGraph("model__0_inference_0")
    # mylib::rms_norm(Tensor x, Tensor weight, float eps=1e-6) -> (Tensor y)
    rms_norm_0 = opaq_graph.launch(
        "mylib::rms_norm", "<hash>", device="cuda:0", node="op0", implementation="cuda")

The wrapper may come from a compile cache that another process has filled: ops are found by name,
and an op whose hash differs from the one in the wrapper is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opaq import _runtime

from . import counts, overload_of, python_functions, record
from .compat import pytorch
from .cpp_files import check_code
from .lists import as_called, declared_name, grouped

if TYPE_CHECKING:
    from opaq._runtime import MeasuredSizes

__all__ = ["Graph", "check_code"]


def through_dispatcher(op: str, values: tuple[Any, ...]) -> None:
    """Does one launch through the dispatcher. values: (*arguments, *results); the results are
    written.
    """
    overload = overload_of(op)
    declared = _runtime.describe(declared_name(op))
    if declared["name"] != op:
        values = tuple(grouped(declared, _runtime.describe(op), values))
    arguments = declared["args"]
    args, kwargs = as_called(declared, values)
    made = overload(*args, **kwargs)
    places, info = values[len(arguments) :], _runtime.describe(op)
    results = made if isinstance(made, (tuple, list)) else (made,)
    if counts.are_read(info):
        return counts.fill(info, places, results)
    for place, result in zip(places, results):
        if place.shape != result.shape or place.dtype != result.dtype:
            raise _runtime.LaunchError(
                f"{op} changed since this graph was compiled: its result is {result.dtype} "
                f"{tuple(result.shape)} now, {place.dtype} "
                f"{tuple(place.shape)} then; call torch.compiler.reset() and compile again"
            )
        place.copy_(result)


class Graph:
    """One wrapper that was loaded. `name` is unique in the process, even if a wrapper is loaded
    twice.
    """

    def __init__(self, label: str) -> None:
        self.name = _runtime.graph_name(label)
        self._run: Any = None  # contract.checked.Run, if the graph is checked

    def launch(
        self,
        op: str,
        hash: str,
        *,
        device: str,
        node: str,
        implementation: str,
        reason: str = "",
        profile: bool = False,
        chosen: str = "compiled",
        check: bool = False,
        source: str = "",
        traced: list[int] | None = None,
        workspace: bool = False,
        nvtx: bool = False,
        measured: MeasuredSizes | None = None,
    ) -> Callable[..., None]:
        """The launch object of one node: call(*args, *outputs, stream) on CUDA, call(*args,
        *outputs) on CPU. workspace: a tensor comes after the outputs, for scratch memory. measured:
        what is tried first by a launch that chooses. nvtx: each launch is an NVTX range.

        profile: time its calls, for the report. chosen: when the implementation is chosen.
        "compiled": `implementation` serves all launches, even if another would fit the graph's
        buffers, which may differ from eager's tensors; "at launch": each launch takes the first
        that fits, or the reference; "verified": as "at launch", and it is an error if that is not
        `implementation`. check: compare each launch with the op's declaration and, if `traced` is
        given, with the traced graph; calls then take `laid_out` too. source: the line of user code.
        """
        launcher = _runtime.launcher(
            op,
            hash,
            device,
            node,
            self.name,
            profile,
            implementation,
            chosen,
            check,
            source,
            workspace,
            measured,
        )
        record.add(record.NodeRecord(self.name, node, op, device, implementation, reason))
        if check:
            draws = chosen == "at launch" or pytorch.draws(overload_of(op))
            checked = self._checked(op, node, source, traced, draws)
            launcher = checked.launch(launcher, _runtime.describe(op))
        return self._named(launcher, op, node) if nvtx else launcher

    def _named(self, launcher: Callable[..., Any], op: str, node: str) -> Callable[..., Any]:
        facts = {"graph": self.name, "node": node}
        return pytorch.named(launcher, _runtime.event_name(op), facts)

    def replay(self, number: int, inputs: list[Any]) -> None:
        """For the contract check, called when a call of the compiled graph begins: starts a run of
        the traced graph on the same inputs.
        """
        self._run.start(number, inputs)

    def _checked(
        self, op: str, node: str, source: str, traced: list[int] | None, draws: bool
    ) -> Any:
        from .contract import checked  # only where something is checked

        self._run = self._run or checked.Run()
        place = f" (node {node} of {self.name}{', from ' if source else ''}{source})"
        return checked.Checked(
            self._run,
            op,
            overload_of(op),
            lambda: place,
            (traced[0], traced[1]) if traced else None,
            draws,
        )

    def python_function(
        self,
        op: str,
        *,
        device: str,
        node: str,
        check: bool = False,
        source: str = "",
        traced: list[int] | None = None,
        nvtx: bool = False,
    ) -> Callable[..., Any]:
        """The current function of an op that is written in Python; nothing in the graph depends on
        its code. A result must be the argument that the schema gives for it (Tensor(a!) ->
        Tensor(a!)), and otherwise must not share memory with an argument.

        If another kernel is registered for the op on this device, the dispatcher is called instead.
        Raises LaunchError if the op is not declared.
        """
        declared = python_functions.get(op)
        if declared is None:
            raise _runtime.LaunchError(
                f"{op} has no Python function in this process; {self.name} was compiled with "
                "one: declare the op first"
            )
        record.add(record.NodeRecord(self.name, node, op, device, "python", ""))
        function, is_ours = declared.function, _runtime.watcher(op, device)
        serves = declared.devices is None or device.split(":")[0] in declared.devices
        overload = overload_of(op)
        returned = pytorch.returned_names(overload)
        names = pytorch.argument_names(overload)
        numbered = pytorch.numbered_arguments(overload)
        event, facts = _runtime.event_name(op), {"implementation": "python"}
        facts |= {"graph": self.name, "node": node}

        def call(*args: Any, **kwargs: Any) -> Any:
            if not serves or not is_ours() or python_functions.get(op) is not declared:
                return overload_of(op)(*args, **kwargs)
            if numbered:
                args = tuple(
                    numbered[name](value) if name in numbered else value
                    for name, value in zip(names, args)
                )
                kwargs = {
                    name: numbered[name](value) if name in numbered else value
                    for name, value in kwargs.items()
                }
            if pytorch.profiler_is_on():
                with pytorch.profiler_event(event, (), facts):
                    results = function(*args, **kwargs)
            else:
                results = function(*args, **kwargs)
            if returned:
                given = {**dict(zip(names, args)), **kwargs}
                written = tuple(given[name] for name in returned)
                found = results if isinstance(results, tuple) else (results,)
                if len(found) != len(written) or any(a is not b for a, b in zip(found, written)):
                    raise _runtime.LaunchError(
                        f"{op} must return the arguments it writes to, {', '.join(returned)}, "
                        f"as {pytorch.schema_text(overload)} says"
                    )
                return results
            pytorch.check_no_alias(op, args, kwargs, results, lambda: function.__module__)
            return results

        if check:
            call = self._checked(op, node, source, traced, True).function(call)
        return self._named(call, op, node) if nvtx else call
