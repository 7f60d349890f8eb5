"""Graphs that Inductor has compiled, or has taken from a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch._inductor.output_code import CompiledFxGraph


class CompiledGraphs:
    def after_compile(self, call: Callable[[], None]) -> None:
        """Has `call()` run whenever the wrapper of a graph, compiled or from a cache, has been
        loaded, while torch knows which compilation runs."""
        original = CompiledFxGraph.post_compile

        def post_compile(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            call()

        CompiledFxGraph.post_compile = post_compile
