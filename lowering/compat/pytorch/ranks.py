"""The processes of torch.distributed."""

from __future__ import annotations

from typing import Any

import torch


class Ranks:
    def rendezvous_store(self) -> Any:
        """The key-value store by which the processes of torch.distributed have found each other;
        None where there are none.
        """
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return None
        if torch.distributed.get_world_size() == 1:
            return None
        return torch.distributed.distributed_c10d._get_default_store()
