"""How tests put patterns into functions, and see which were found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from opaq.lowering import Substitution
from opaq.lowering.substitute import apply


def backend(*names: str, seen: Callable[[torch.fx.Graph], None] = lambda graph: None) -> Any:
    """Puts patterns into a graph, and runs it without compiling it. names: as the option
    "substitute" has them. seen: is given each graph afterwards."""

    def run(graph_module: torch.fx.GraphModule, _: Any) -> Any:
        apply.apply(graph_module, names)
        seen(graph_module.graph)
        return graph_module.forward

    return run


def found_in(
    function: Any, *arguments: Any, names: Any = None, **settings: Any
) -> list[Substitution]:
    """What is found; the results are compared with eager's."""
    expected = function(*arguments)
    wanted = names or ["cross_entropy", "layer_norm", "rms_norm", "rope", "silu_mul"]
    compiled = torch.compile(function, backend="opaq", options={"substitute": wanted}, **settings)
    with apply.collected() as found:
        result = compiled(*arguments)
    torch.testing.assert_close(result, expected)
    return found
