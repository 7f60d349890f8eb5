"""Inductor's compile caches: what their keys hold, and where their files lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch._functorch._aot_autograd import autograd_cache
from torch._inductor import codecache
from torch._inductor.runtime.cache_dir_utils import cache_dir


class Caches:
    # raised while a graph's key is made: the graph is not cached
    CacheBypass: type[Exception] = codecache.BypassFxGraphCache

    def cache_dir(self) -> str:
        """The folder of all files that Inductor keeps (TORCHINDUCTOR_CACHE_DIR)."""
        return cache_dir()

    def on_cache_key(self, details_of: Callable[[Any, bool], Any], bypass: type[Exception]) -> None:
        """Adds `details_of(graph_module, traced)` to the keys of a graph in FxGraphCache and
        AOTAutogradCache; None adds nothing. traced: whether the key is AOTAutogradCache's, for a
        graph that will be traced with fake tensors and gradients. If it raises `bypass`, the graph
        is not cached.

        Both keys are digests of the attributes of an FxGraphHashDetails object (AOTAutograd's class
        derives from it).
        """
        original = codecache.FxGraphHashDetails.__init__

        def __init__(self: Any, gm: Any, *args: Any, **kwargs: Any) -> None:
            original(self, gm, *args, **kwargs)
            traced = isinstance(self, autograd_cache.AOTAutogradCacheDetails)
            try:
                details = details_of(gm, traced)
            except bypass as error:
                raise (
                    autograd_cache.BypassAOTAutogradCache
                    if traced
                    else codecache.BypassFxGraphCache
                )(str(error)) from error
            if details is not None:
                self.opaq = details

        codecache.FxGraphHashDetails.__init__ = __init__
