"""Gradients of large results that are computed only if they are asked for.

A model that returns its logits beside its loss is differentiated for the loss alone, as a rule. But
the compiled graph has a gradient of the logits among the arguments of its backward pass: PyTorch
makes a tensor of zeros for it, as large as the logits, and the graph adds it to the others. For a
vocabulary of 150000 that is a tenth of a training step, and the most memory that it takes.

So the graph is compiled to return such results without a gradient, and each gets one here. If it is
asked for after all, the graph as it was traced is run again, in eager mode, with gradients, and the
next call compiles it as a whole. That takes a graph that may run again: one that draws no random
numbers and writes to no input.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from .lowering.compat.pytorch.effects import can_run_again, versions
from .lowering.substitute.operations import is_opaque, memory, value_of

Compiled = Callable[..., Any]
LARGE = 32_000_000  # bytes of a result: what is smaller is not worth the arguments of a function


def results_of(graph_module: GraphModule) -> list[int]:
    """The numbers of the results that should be returned without a gradient: large ones that share
    no memory with others, of a graph that also returns a loss which is computed from them. Empty
    where the graph may not run again."""
    from .lowering.compat.inductor import inductor

    if not torch.is_grad_enabled():
        return []
    returned = _returned(graph_module.graph)
    values = [value_of(each) if isinstance(each, Node) else None for each in returned]
    trained = [isinstance(each, torch.Tensor) and each.requires_grad for each in values]
    losses = [
        node for node, need, each in zip(returned, trained, values) if need and each.dim() == 0
    ]
    before_losses = _ancestors(losses)
    inputs = [value_of(node) for node in graph_module.graph.nodes if node.op == "placeholder"]
    shared = Counter(place for each in (*inputs, *values) for place in set(memory(each)))
    found = [
        number
        for number, (node, need, each) in enumerate(zip(returned, trained, values))
        if need
        and node in before_losses
        and inductor.size_hint(each.numel()) * each.itemsize >= LARGE
        and all(shared[place] == 1 for place in memory(each))
    ]
    may_run_again = found and not any(is_opaque(node) for node in graph_module.graph.nodes)
    return found if may_run_again and can_run_again(graph_module, inputs) else []


def copy_of(graph_module: GraphModule) -> GraphModule:
    """The same graph, which stays as it is when the other is changed."""
    graph = Graph()
    graph.output(graph.graph_copy(graph_module.graph, {}))
    return GraphModule(graph_module, graph)


@contextlib.contextmanager
def without_gradients(graph_module: GraphModule, numbers: Sequence[int]) -> Iterator[None]:
    """In the block, the graph returns these results without a gradient."""
    output = graph_module.graph.output_node()
    before = output.args
    returned, added = list(before[0]), []
    with graph_module.graph.inserting_before(output):
        for number in numbers:
            detached = graph_module.graph.call_method("detach", (returned[number],))
            detached.meta["example_value"] = value_of(returned[number]).detach()
            returned[number] = detached
            added.append(detached)
    output.args = (type(before[0])(returned),)
    graph_module.recompile()
    try:
        yield
    finally:
        output.args = before
        for node in added:
            graph_module.graph.erase_node(node)
        graph_module.recompile()


class LazyGradients:
    """Calls a compiled graph, and gives these of its results their gradients."""

    def __init__(
        self,
        traced: GraphModule,
        compiled: Compiled,
        numbers: Sequence[int],
        compile_whole: Callable[[Sequence[Any]], Compiled],
    ) -> None:
        """traced: the graph, to be run again. numbers: of these results. compile_whole: compiles it
        with gradients of all results."""
        self.traced = traced
        self.was_asked = False
        self._compiled = compiled
        self._lazy = numbers
        self._compile_whole = compile_whole
        inputs = [value_of(node) for node in traced.graph.nodes if node.op == "placeholder"]
        self._static = not any(isinstance(each, torch.SymInt) for each in inputs)
        self._autocast = [
            (
                device,
                torch.get_autocast_dtype(device),
                torch.is_autocast_enabled(device),
                torch.is_autocast_cache_enabled(),
            )
            for device in {each.device.type for each in inputs if isinstance(each, torch.Tensor)}
        ]
        self._is_whole = False

    def __call__(self, *inputs: Any) -> Any:
        if self.was_asked and self._static and not self._is_whole:
            self._compiled, self._is_whole = self._compile_whole(inputs), True
        results = self._compiled(*inputs)
        if self._is_whole or not torch.is_grad_enabled():
            return results
        results = list(results)
        for number in self._lazy:
            results[number] = _Gradient.apply(self, number, results[number], *inputs)
        return tuple(results)

    def run_again(self, inputs: Sequence[Any]) -> Any:
        """The graph's results in eager mode, with gradients, under the autocast that the graph was
        compiled under: the backward pass is outside of it."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            for each in self._autocast:
                stack.enter_context(torch.autocast(*each))
            return self.traced(*inputs)


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, owner: Any, number: int, result: torch.Tensor, *inputs: Any) -> Any:
        ctx.set_materialize_grads(False)
        ctx.owner, ctx.number = owner, number
        # Not saved for the backward pass as PyTorch has it: hooks, such as those that move what is
        # saved to the CPU, would see each parameter, for what is seldom asked for.
        ctx.inputs, ctx.versions = inputs, versions(inputs)
        return result.detach()

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        if grad is None:
            return None, None, None, *(None for _ in ctx.inputs)
        if ctx.versions != versions(ctx.inputs):
            raise RuntimeError(
                f"result {ctx.number} of a compiled graph was differentiated when an input of the "
                "graph, such as a parameter, had been modified by an inplace operation: call "
                "backward before"
            )
        if not ctx.owner.was_asked:
            ctx.owner.was_asked = True
            warnings.warn(
                f"result {ctx.number} of a compiled graph was differentiated beside its loss: the "
                "graph was run again in eager mode for it; options={'lazy_gradients': False} of "
                'backend="opaq" compiles gradients of all results',
                stacklevel=2,
            )
        given = [
            each.detach().requires_grad_(each.requires_grad)
            if isinstance(each, torch.Tensor)
            else each
            for each in ctx.inputs
        ]
        result = ctx.owner.run_again(given)[ctx.number]
        trained = [isinstance(each, torch.Tensor) and each.requires_grad for each in given]
        wanted = [each for each, need in zip(given, trained) if need]
        gradients = torch.autograd.grad(result, wanted, grad.detach(), allow_unused=True)
        if torch.is_grad_enabled():  # create_graph=True
            leaves = [each for each, need in zip(ctx.inputs, trained) if need]
            gradients = _Once.apply(len(gradients), *gradients, grad, *leaves)
        found = iter(gradients)
        return None, None, None, *(next(found) if need else None for need in trained)


class _Once(torch.autograd.Function):
    """Gradients that depend on the other tensors, but have no gradients themselves."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Any) -> Any:
        return tensors[:count]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            "gradients of a result of a compiled graph have no gradients themselves: "
            "torch.compile does not support double backward; leave this part uncompiled"
        )


def _ancestors(nodes: Sequence[Node]) -> set[Node]:
    """What is computed before these, and for them."""
    found: set[Node] = set()
    queue = list(nodes)
    while queue:
        for node in queue.pop().all_input_nodes:
            if node not in found:
                found.add(node)
                queue.append(node)
    return found


def _returned(graph: Graph) -> Sequence[Any]:
    returned = graph.output_node().args[0]
    return returned if isinstance(returned, (tuple, list)) else ()
