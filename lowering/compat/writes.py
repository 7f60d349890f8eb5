"""Where torch 2.11's scheduler loses what a kernel depends on, so that reads and writes change places: stock custom ops are wrong there, too."""

from __future__ import annotations

from typing import Any

from torch._inductor import scheduler
from torch._inductor.dependencies import StarDep, WeakDep
from torch.utils._ordered_set import OrderedSet


def keep_dependencies() -> None:
    """Keeps what a kernel depends on when Inductor works out its loops anew, as it does on the CPU to fuse it.

    torch 2.11 reads the dependencies from the loops then, and forgets which write of a buffer is read and what had been added by hand: that a
    write waits for the readers of the old value. torch 2.15 keeps both.
    """
    original = scheduler.SchedulerNode.recompute_size_and_body

    def recompute_size_and_body(self: Any, *args: Any, **kwargs: Any) -> None:
        added = OrderedSet(dep for dep in self.read_writes.reads if isinstance(dep, (WeakDep, StarDep)))
        original(self, *args, **kwargs)
        self.set_read_writes(self.read_writes.with_read(added).rename(self.mutation_renames))

    scheduler.SchedulerNode.recompute_size_and_body = recompute_size_and_body
