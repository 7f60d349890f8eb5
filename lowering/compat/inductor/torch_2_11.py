"""The adapter of Inductor for torch 2.11 to 2.14, and the base class of those for later torches."""

from __future__ import annotations

from ..mends import MENDS
from .caches import Caches
from .compiled_graphs import CompiledGraphs
from .dry_run import DryRun
from .functional_calls import FunctionalCalls
from .lowerings import Lowerings
from .overwriting import Overwriting
from .tracing import Tracing
from .wrappers import Wrappers


class Inductor211(
    Lowerings, FunctionalCalls, Wrappers, Overwriting, Caches, CompiledGraphs, DryRun, Tracing
):
    """Inductor's private names, by subject (Layouts and Views are bases of FunctionalCalls)."""

    minor = (2, 11)

    def install_mends(self) -> None:
        """Corrects what Inductor of this torch does wrong (see `mends`), for the whole process.
        To be called once, before any graph is lowered.
        """
        for mend in MENDS:
            if mend.fixed_in is None or self.minor < mend.fixed_in:
                mend.install()
