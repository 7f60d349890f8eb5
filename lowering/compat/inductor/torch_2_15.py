"""The adapter of Inductor for torch 2.15 and later: what opaq uses is spelled as in 2.11, except
for streams and ordered effects.
"""

from __future__ import annotations

from torch._inductor.stream_utils import get_stream_name
from torch._inductor.virtualized import V

from .torch_2_11 import Inductor211


class Inductor215(Inductor211):
    minor = (2, 15)

    def effect_before(self) -> None:
        return None  # the dependencies that Inductor adds itself are correct

    def user_stream(self) -> str | None:
        index = V.graph.scheduler.current_stream_idx
        return get_stream_name(index) if index else None
