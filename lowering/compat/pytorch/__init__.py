"""`pytorch`: the adapter of the installed torch, without Inductor.

The adapter is a class: its methods are grouped by subject in the modules of this folder and joined
in `torch_2_11.PyTorch211`. What it uses is spelled alike by every torch so far, so that no minor
has a subclass.
"""

from __future__ import annotations

from .definitions import Definition
from .torch_2_11 import PyTorch211

__all__ = ["Definition", "pytorch"]

pytorch = PyTorch211()
