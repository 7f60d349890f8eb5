"""torch.compile(model, backend="opaq"): Inductor with opaque ops as nodes of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from . import lazy_gradients, lowering
from .options import check_patterns, split


def compile_graph(
    graph_module: torch.fx.GraphModule,
    example_inputs: list[Any],
    *,
    options: dict[str, Any] | None = None,
    mode: str | None = None,
) -> Any:
    """Compiles one graph. torch.compile finds this function through the entry point group
    `torch_dynamo_backends`, so that opaq need not be imported.

    options: `opaq.options.OPTIONS` and Inductor's. mode: Inductor's ("reduce-overhead",
    "max-autotune", ...); options take precedence. Raises opaq.DeclarationError for options.
    """
    from .lowering.compat.inductor import inductor  # costs seconds: only where this compiles

    ours, patches = settings(options, mode)
    lowering.activate()

    def compiled(inputs: Sequence[Any]) -> Any:
        return inductor.compile_fx(
            graph_module, inputs, patches, lambda: lowering.options.use(**ours)
        )

    return changed(graph_module, example_inputs, ours, compiled)


def changed(
    graph_module: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    ours: Mapping[str, Any],
    compiled: Callable[[Sequence[Any]], Any],
) -> Any:
    """What `compiled`, called with the inputs, makes of the graph when patterns in it have been
    replaced by ops and large results beside a loss are returned without gradients, which are
    computed if they are asked for.
    """
    from .lowering.substitute import apply

    lazy = lazy_gradients.results_of(graph_module) if ours["lazy_gradients"] else []
    traced = lazy_gradients.copy_of(graph_module) if lazy else graph_module
    with lowering.options.use(**ours):
        apply.apply(graph_module, ours["substitute"])
    if not lazy:
        return compiled(example_inputs)
    with lazy_gradients.without_gradients(graph_module, lazy):
        without = compiled(example_inputs)
    return lazy_gradients.LazyGradients(traced, without, lazy, compiled)


def settings(
    options: dict[str, Any] | None, mode: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(our options, changes to Inductor's) that these stand for. Raises DeclarationError."""
    from .lowering.compat.inductor import inductor

    ours, theirs = split(options or {}, inductor.list_options())
    if ours["substitute"] != ["none"]:
        from . import extern_kernels, pattern_gains  # noqa: F401  the second answers `tune`

        extern_kernels.load_patterns()
        check_patterns(ours["substitute"])
    return ours, {**(inductor.list_mode_options(mode) if mode else {}), **theirs}


compile_graph.__name__ = "opaq"  # torch.compile logs the backend under this name
