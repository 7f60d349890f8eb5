"""The base of `Op`: what makes its instances callable, and what type checkers see of that."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsIndex

import torch

from . import _runtime

if TYPE_CHECKING:
    # The type of one argument of an op. PyTorch also converts NumPy's numbers.
    Argument = (
        torch.Tensor
        | SupportsFloat
        | SupportsIndex
        | str
        | torch.dtype
        | torch.device
        | Sequence[SupportsIndex]
        | None
    )

    class CallableBase:
        """The base of Op as type checkers see it. Results are Any: one tensor, a tuple of tensors
        or None, as the schema says."""

        func: Any
        overload: Any

        def __new__(cls, *args: Any) -> Any: ...
        def __call__(self, *args: Argument, **kwargs: Argument) -> Any: ...

elif hasattr(functools.partial, "__get__"):

    class CallableBase(_runtime.Unbound, functools.partial):
        """From Python 3.14 on, a partial that is an attribute of a class becomes a method of it
        (3.13 warns of this); Unbound prevents it.
        """

        __slots__ = ()

else:
    CallableBase = functools.partial
