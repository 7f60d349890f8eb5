"""A backend of torch.compile that puts patterns into a graph, and runs it without compiling it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from opaq.lowering.substitute import apply


def backend(*names: str, seen: Callable[[torch.fx.Graph], None] = lambda graph: None) -> Any:
    """names: as the option "substitute" has them. seen: is given each graph afterwards."""

    def run(graph_module: torch.fx.GraphModule, _: Any) -> Any:
        apply.apply(graph_module, names)
        seen(graph_module.graph)
        return graph_module.forward

    return run
