"""The adapter of Inductor for torch 2.15 and later: what opaq uses is spelled as in 2.11, except
for streams and ordered effects.
"""

from __future__ import annotations

from typing import Any

from torch._inductor.stream_utils import get_stream_name
from torch._inductor.virtualized import V

from ..mends.returned_arguments import return_arguments
from ..mends.streams import allocate_in_own_place
from .torch_2_11 import Inductor211


class Inductor215(Inductor211):
    minor = (2, 15)

    def install_mends(self) -> None:
        super().install_mends()
        allocate_in_own_place()
        return_arguments()

    def effect_before(self) -> None:
        return None  # the dependencies that Inductor adds itself are correct

    def user_stream(self) -> str | None:
        index = V.graph.scheduler.current_stream_idx
        return get_stream_name(index) if index else None

    def _runs_where_made(self, name: str, node: Any) -> bool:
        scheduler = V.graph.scheduler
        return not scheduler.has_cross_stream_hazard(name, node) and scheduler.get_buf_mempool(
            name
        ) == scheduler.node_to_mempool.get(node)

    def raw_stream(self, wrapper: Any, device_index: int) -> str:
        if self.user_stream() is None:
            return super().raw_stream(wrapper, device_index)
        # write_get_raw_stream prints its line once, and so has the first stream of all
        wrapper.write_get_raw_stream_header()
        wrapper.writeline(f"raw_stream = get_raw_stream({device_index})")
        return "raw_stream"
