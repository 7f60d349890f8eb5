"""What is found in unmodified models, and what is put in its place."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import normal
from .nodes import Nodes
from .spelling import graph_of

# Begins the name of a parameter: why the graph keeps that argument until the backward pass anyway.
KEEPS = "keeps_"
# The name of a parameter: the dtype of the pattern's first result, as a text.
RESULT_DTYPE = "result_dtype"
# The name of a parameter: the dtype in which the other results are computed from the last one.
READ_DTYPE = "read_dtype"
# Bytes of such an argument. Less is still in the caches (50 MB on an H200) when the backward pass
# reads it, and a gradient that is computed before gains nothing: measured, 16 MB lose, 33 MB gain.
LARGE = 32_000_000

# (rows, columns) of a call, by which measurements are looked up
Sizes = Callable[[Mapping[str, Any]], tuple[Any, Any]]


@dataclasses.dataclass(eq=False)
class Pattern:
    """`opaq.pattern` tells what the fields are."""

    name: str
    replacement: Callable[..., Any]
    examples: Mapping[str, Any]
    when: Callable[[Mapping[str, Any]], str]
    streamed: tuple[str, ...]
    nonzero: tuple[str, ...]
    sizes: Sizes
    form: Callable[[Mapping[str, Any]], str]
    measurements: Path | None
    alone: bool
    exact: bool
    by_name: str
    casts_matter: bool
    rounds_products: bool
    positive: tuple[str, ...]
    saves: Callable[[Mapping[str, Any], bool], Any]
    module: str  # that declares it
    spellings: list[Callable[..., Any]] = dataclasses.field(default_factory=list)
    fixed: dict[Callable[..., Any], Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    _graphs: dict[Callable[..., Any], Nodes] = dataclasses.field(default_factory=dict)

    @property
    def arguments(self) -> list[str]:
        """The names of the replacement's parameters."""
        return list(inspect.signature(self.replacement).parameters)

    def defaults(self, spelling: int) -> dict[str, Any]:
        """What the replacement's parameters are which a spelling does not have."""
        parameters = inspect.signature(self.replacement).parameters.values()
        known = {each.name: each.default for each in parameters if each.default is not each.empty}
        return {**known, **self.fixed.get(self.spellings[spelling], {})}

    def graphs(self) -> list[Nodes]:
        """Of the spellings; made once."""
        for function in self.spellings:
            if function not in self._graphs:
                names = inspect.signature(function).parameters
                graph = graph_of(function, [self.examples[name] for name in names])
                normal.by_place(graph)
                normal.rewritten(graph)
                self._graphs[function] = Nodes(graph)
        return [self._graphs[function] for function in self.spellings]


# By name, in order of declaration.
patterns: dict[str, Pattern] = {}
