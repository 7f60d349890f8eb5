"""`inductor`: the adapter of the installed torch's Inductor. Importing this imports Inductor, which
takes seconds.

The adapter is a class: its methods are grouped by subject in the modules of this folder, joined in
`torch_2_11.Inductor211`, and overridden in one subclass for each later torch minor that differs.
"""

from __future__ import annotations

import torch
from torch._inductor import ir
from torch._inductor.virtualized import V
from torch.utils._ordered_set import OrderedSet
from torch.utils._pytree import tree_leaves, tree_map

from ..version import nearest
from .functional_calls import WrittenValue
from .torch_2_11 import Inductor211

__all__ = ["OrderedSet", "V", "WrittenValue", "inductor", "ir", "tree_leaves", "tree_map"]


def _adapter() -> Inductor211:
    if nearest([(2, 11), (2, 15)], torch.__version__) == (2, 15):
        from .torch_2_15 import Inductor215  # imports what 2.11 lacks

        return Inductor215()
    return Inductor211()


inductor = _adapter()
