"""The graph being printed, and the text of its Python or C++ wrapper."""

from __future__ import annotations

from typing import Any

from torch._inductor import config
from torch._inductor.codegen.cpp_utils import cexpr
from torch._inductor.codegen.wrapper import SubgraphPythonWrapperCodegen, pexpr
from torch._inductor.virtualized import V


class Wrappers:
    def wrapper_language(self) -> str:
        """The language of the graph's wrapper: "python"; "cpp", compiled for this process;
        "package", the C++ of AOTInductor; "" for any other.
        """
        if getattr(V.graph, "fx_wrapper", False):
            return ""
        if V.graph.aot_mode:
            return "package"
        return "cpp" if V.graph.cpp_wrapper else "python"

    def prints_two_wrappers(self) -> bool:
        """Whether AOTInductor prints each line into a second wrapper too, which runs during
        compilation (an option of 2.15).
        """
        return bool(getattr(V.graph, "is_dual_wrapper_mode", False))

    def is_root(self) -> bool:
        """Whether the graph being lowered is the whole graph, not the branch of a condition or the
        body of a loop."""
        return not hasattr(V.graph, "parent")

    def folds_constants(self) -> bool:
        """Whether the graph computes constants of another graph in the same package: when the
        package is loaded, and when its weights change.
        """
        return _root_graph().is_const_graph

    def constants_wrapper(self) -> Any:
        """The wrapper of the graph that computes constants of this one, which is printed before;
        None if there is none.
        """
        constants = _root_graph().const_module
        return constants and constants.wrapper_code

    def packaged(self) -> bool:
        """Whether AOTInductor's files go into a .pt2; else they stay where they are written."""
        return bool(config.aot_inductor.package)

    def records_kernels(self) -> bool:
        """Whether a C++ wrapper tells PyTorch's profiler of each kernel that it launches."""
        return bool(config.cpp.enable_kernel_profile)

    def user_stream(self) -> str | None:
        """The C++ variable of the stream of the user's that the node being printed runs on; None:
        the stream on which the graph is called.
        """
        return None  # before 2.15 a C++ wrapper knows no others

    def raw_stream(self, wrapper: Any, device_index: int) -> str:
        """The variable of a Python wrapper that has the stream of the node being printed."""
        return wrapper.write_get_raw_stream(device_index, V.graph.name)

    # ---- text ------------------------------------------------------------------------------------

    def pexpr(self, expression: Any) -> str:
        """Python text of a sympy expression."""
        return pexpr(expression)

    def cexpr(self, expression: Any) -> str:
        """C++ text of a sympy expression."""
        return cexpr(expression)

    def root_wrapper(self, wrapper: Any) -> Any:
        """The wrapper whose header is printed: subgraphs and graph partitions share their
        parent's."""
        if isinstance(wrapper, SubgraphPythonWrapperCodegen):
            return wrapper.get_root_graph()
        return wrapper

    def before_body(self, wrapper: Any, line: str) -> None:
        """Puts a line at the start of the body of a Python wrapper, where the graph's inputs have
        names.
        """
        wrapper.lines.insert(0, line)

    def prepend_python(self, wrapper: Any, position: int, line: str) -> None:
        """Puts a line of Python into the header of a C++ wrapper for this process, whose text
        begins and ends with Python. position: the line's index.
        """
        self.root_wrapper(wrapper).header._lines.insert(position, line)


def _root_graph() -> Any:
    graph = V.graph
    while hasattr(graph, "parent"):  # a branch of torch.cond
        graph = graph.parent
    return graph
