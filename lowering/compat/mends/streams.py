"""Memory on CUDA streams and in memory pools of the program, which torch knows since 2.15."""

from __future__ import annotations

from typing import Any

from torch._inductor.scheduler import NopKernelSchedulerNode, Scheduler
from torch._inductor.virtualized import V


def allocate_in_own_place() -> None:
    """Has Inductor allocate a buffer without a kernel of its own, such as a result of an opaque op
    or of torch.empty, on the stream and in the pool where the program makes it.

    Inductor takes the stream of the node before, and the default pool. When such a buffer is freed,
    the allocator may give its memory to that stream while kernels of the other still use it.
    """
    switch, mark_run = Scheduler.generate_stream_ctx_switching, NopKernelSchedulerNode.mark_run

    def generate_stream_ctx_switching(self: Any, node: Any) -> None:
        if not isinstance(node, NopKernelSchedulerNode):
            switch(self, node)
            return
        stream = self.get_node_stream(node)
        if self.current_stream_idx == stream or not _allocates(node):
            return
        if self.current_stream_idx is not None:
            self.generate_stream_ctx_exit()
        self._current_stream_ctx = V.graph.wrapper_code.codegen_cuda_stream_enter(stream_idx=stream)

    def mark_run_in_pool(self: Any) -> None:
        pool = V.graph.scheduler.node_to_mempool.get(self)
        if pool is None or not _allocates(self):
            mark_run(self)
            return
        V.graph.wrapper_code.codegen_cuda_mempool_enter(pool)
        mark_run(self)
        V.graph.wrapper_code.codegen_cuda_mempool_exit()

    Scheduler.generate_stream_ctx_switching = generate_stream_ctx_switching
    NopKernelSchedulerNode.mark_run = mark_run_in_pool


def _allocates(node: Any) -> bool:
    """Whether a line will be printed. Else the block of the stream or pool could be empty."""
    done = {*V.graph.removed_buffers, *V.graph.wrapper_code.allocated}
    return any(
        buffer.node.should_allocate() and buffer.get_name() not in done for buffer in node.outputs
    )
