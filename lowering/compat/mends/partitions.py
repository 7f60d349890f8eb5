"""Parts of a graph that go into CUDA graphs by themselves."""

from __future__ import annotations

from typing import Any

from torch._inductor.ir import NoneLayout
from torch._inductor.scheduler import Scheduler


def pass_only_memory() -> None:
    """Leaves out of a part's arguments what has no memory, such as the read of a size. It is None,
    which the recording of a CUDA graph refuses; the size itself is an argument of its own.
    """
    find = Scheduler.get_graph_partition_signature

    def get_graph_partition_signature(self: Any, *args: Any, **kwargs: Any) -> Any:
        signatures = find(self, *args, **kwargs)
        for signature in signatures:
            for name in list(signature.input_nodes):
                buffer = self.name_to_buf.get(name)
                if buffer is not None and isinstance(buffer.node.layout, NoneLayout):
                    del signature.input_nodes[name]
                    signature.input_deallocation.pop(name, None)
        return signatures

    Scheduler.get_graph_partition_signature = get_graph_partition_signature
