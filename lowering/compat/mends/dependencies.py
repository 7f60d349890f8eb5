"""Dependencies of kernels that torch 2.11's scheduler loses, so that it reorders reads and writes.
PyTorch's own custom ops are affected too.
"""

from __future__ import annotations

from typing import Any

from torch._inductor import scheduler
from torch._inductor.dependencies import StarDep, WeakDep
from torch.utils._ordered_set import OrderedSet


def keep_added_dependencies() -> None:
    """Keeps the dependencies of a kernel when Inductor computes its loops again, as it does on the
    CPU to fuse it.

    torch 2.11 then takes the dependencies from the loops, and loses which write of a buffer is read
    and the dependencies that were added explicitly, such as that of a write on the readers of the
    old value. torch 2.15 keeps both.
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
    """Keeps Inductor from fusing a write in place with a reader of the same memory that refers to
    it by the name of an earlier write: torch 2.11 then does not check that both visit the elements
    in the same order, as they do not in `op(x); x.add_(x.t())`. torch 2.15 checks it.
    """
    original = scheduler.Scheduler.fusable_weak_dep

    def fusable_weak_dep(self: Any, weak_dep: Any, node1: Any, node2: Any) -> bool:
        memory_name = self.mutation_real_name.get(weak_dep.mutating_buf)
        renamed = (dep.name for dep in node1.read_writes.reads if dep.name != memory_name)
        return all(
            self.mutation_real_name.get(name) != memory_name for name in renamed
        ) and original(self, weak_dep, node1, node2)

    scheduler.Scheduler.fusable_weak_dep = fusable_weak_dep
