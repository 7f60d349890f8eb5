"""Where torch 2.11's scheduler loses what a kernel depends on, so that reads and writes change
places: stock custom ops are wrong there, too.
"""

from __future__ import annotations

from typing import Any

from torch._inductor import scheduler
from torch._inductor.dependencies import StarDep, WeakDep
from torch.utils._ordered_set import OrderedSet


def keep_added_dependencies() -> None:
    """Keeps what a kernel depends on when Inductor works out its loops anew, as it does on the CPU
    to fuse it.

    torch 2.11 reads the dependencies from the loops then, and forgets which write of a buffer is
    read and what had been added by hand: that a write waits for the readers of the old value. torch
    2.15 keeps both.
    """
    original = scheduler.SchedulerNode.recompute_size_and_body

    def recompute_size_and_body(self: Any, *args: Any, **kwargs: Any) -> None:
        added = OrderedSet(
            dep for dep in self.read_writes.reads if isinstance(dep, (WeakDep, StarDep))
        )
        original(self, *args, **kwargs)
        self.set_read_writes(self.read_writes.with_read(added).rename(self.mutation_renames))

    scheduler.SchedulerNode.recompute_size_and_body = recompute_size_and_body


def keep_reads_before_writes() -> None:
    """Keeps Inductor from fusing a write in place with a reader of the same memory that names it by
    an earlier write, since it then does not look whether both go over the elements in the same
    order: `op(x); x.add_(x.t())`. torch 2.15 looks."""
    original = scheduler.Scheduler.fusable_weak_dep

    def fusable_weak_dep(self: Any, weak_dep: Any, node1: Any, node2: Any) -> bool:
        memory_name = self.mutation_real_name.get(weak_dep.mutating_buf)
        renamed = (dep.name for dep in node1.read_writes.reads if dep.name != memory_name)
        return all(
            self.mutation_real_name.get(name) != memory_name for name in renamed
        ) and original(self, weak_dep, node1, node2)

    scheduler.Scheduler.fusable_weak_dep = fusable_weak_dep
