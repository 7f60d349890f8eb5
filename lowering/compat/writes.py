"""Where torch 2.11's scheduler moves a write in front of what reads the value before it: stock custom ops are wrong there, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch._inductor import memory, scheduler
from torch._inductor.virtualized import V


def keep_reads_before_writes(is_ours: Callable[[Any], bool]) -> None:
    """Keeps Inductor from moving a write in front of a node of ours that reads what was there, in its search for an order that needs less memory.

    torch 2.11 may lose the dependency where the writing kernel is fused of several (stock custom ops are wrong there, too)."""
    original = memory.reorder_for_peak_memory

    def reorder(nodes: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
        result = original(nodes, *args, **kwargs)
        before, after = ({node: i for i, node in enumerate(order)} for order in (nodes, result))
        writers: dict[str, list[Any]] = {}
        for node in nodes:
            for name in (name for output in node.get_outputs() for name in output.get_mutations()):
                writers.setdefault(name, []).append(node)
        real_name = V.graph.scheduler.mutation_real_name
        for node in nodes:
            if not is_ours(node.node):
                continue
            for name in (real_name.get(dep.name, dep.name) for dep in node.read_writes.reads):
                if any(before[node] < before[writer] and after[writer] < after[node] for writer in writers.get(name, ())):
                    return list(nodes)
        return result

    memory.reorder_for_peak_memory = reorder


def keep_fused_reads_before_writes() -> None:
    """Keeps Inductor from fusing a write in place with a reader of the same memory that names it by an earlier write, since it then does not look whether
    both go over the elements in the same order: `op(x); x.add_(x.flip(0))`. torch 2.15 looks."""
    original = scheduler.Scheduler.fusable_weak_dep

    def fusable_weak_dep(self: Any, weak_dep: Any, node1: Any, node2: Any) -> bool:
        memory_name = self.mutation_real_name.get(weak_dep.mutating_buf)
        renamed = (dep.name for dep in node1.read_writes.reads if dep.name != memory_name)
        return all(self.mutation_real_name.get(name) != memory_name for name in renamed) and original(self, weak_dep, node1, node2)

    scheduler.Scheduler.fusable_weak_dep = fusable_weak_dep
