"""The graph being printed, and the text of its Python or C++ wrapper."""

from __future__ import annotations

from typing import Any

from torch._inductor import config
from torch._inductor.codegen.cpp_utils import cexpr
from torch._inductor.codegen.wrapper import SubgraphPythonWrapperCodegen, pexpr
from torch._inductor.virtualized import V


class Wrappers:
    def wrapper_language(self) -> str:
        """What the graph's wrapper is written in: "python"; "cpp", compiled for this process;
        "package", C++ of AOTInductor; "" for any other.
        """
        if getattr(V.graph, "fx_wrapper", False):
            return ""
        if V.graph.aot_mode:
            return "package"
        return "cpp" if V.graph.cpp_wrapper else "python"

    def prints_two_wrappers(self) -> bool:
        """Whether each line of AOTInductor's wrapper goes into a second one too, which runs while
        compiling (2.15, on request).
        """
        return bool(getattr(V.graph, "is_dual_wrapper_mode", False))

    def is_root(self) -> bool:
        """Whether the graph being lowered is the one that is called, and no branch or body in
        it."""
        return not hasattr(V.graph, "parent")

    def folds_constants(self) -> bool:
        """Whether the graph computes the constants of another, when a package is loaded and when
        its weights change; the two are packaged together.
        """
        return _root_graph().is_const_graph

    def constants_wrapper(self) -> Any:
        """The wrapper, printed before, of the graph that computes the constants of this one; None
        where nothing is folded.
        """
        constants = _root_graph().const_module
        return constants and constants.wrapper_code

    def packaged(self) -> bool:
        """Whether AOTInductor's files will lie together in a .pt2, rather than where they are
        written now.
        """
        return bool(config.aot_inductor.package)

    def user_stream(self) -> str | None:
        """The C++ variable of the user's stream that the node being printed runs on; None: that on
        which the graph is called.
        """
        return None  # before 2.15 a C++ wrapper knows no others

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
        """Prints a line into a Python wrapper before those that run anything; the graph's inputs
        have names there.
        """
        wrapper.lines.insert(0, line)

    def prepend_python(self, wrapper: Any, position: int, line: str) -> None:
        """Puts a line of Python at the head of a C++ wrapper that is not packaged, whose text
        begins and ends in Python. position: its line there.
        """
        self.root_wrapper(wrapper).header._lines.insert(position, line)


def _root_graph() -> Any:
    graph = V.graph
    while hasattr(graph, "parent"):  # a branch of torch.cond
        graph = graph.parent
    return graph
