"""The adapter of torch without Inductor, for torch 2.11 and later."""

from __future__ import annotations

from .autograd import Autograd
from .definitions import Definitions
from .dispatcher import Dispatcher
from .functions import Functions
from .library import Library
from .logs import Logs
from .ranges import Ranges
from .ranks import Ranks
from .sharding import Sharding
from .state import State
from .vmap import Vmap


class PyTorch211(
    Library,
    Definitions,
    Dispatcher,
    Functions,
    Sharding,
    Ranks,
    State,
    Logs,
    Ranges,
    Autograd,
    Vmap,
):
    """PyTorch's private names, by subject."""
