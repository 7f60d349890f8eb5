"""Adapters to PyTorch: the only place that names what is private to torch, Dynamo or Inductor.

    pytorch/   `pytorch`: ops, dispatcher, autograd. Cheap: does not import Inductor.
    inductor/  `inductor`: graphs, layouts, wrappers, caches of Inductor. Importing it takes
               seconds; only modules that `lowering.activate()` loads do so.
    mends/     faults of torch, and the patches that correct them.

An adapter is a class for the oldest torch, with a subclass for each later minor that differs.
"""

from __future__ import annotations

from .pytorch import pytorch

__all__ = ["pytorch"]
