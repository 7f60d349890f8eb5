"""Inductor's compile caches: what their keys hold, and where their files lie; and packages of
compiled graphs (torch._dynamo.config.caching_precompile), which have no such keys.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch._functorch._aot_autograd import aot_autograd_result, autograd_cache
from torch._inductor import codecache
from torch._inductor.runtime.cache_dir_utils import cache_dir

_latest = threading.local()  # details: of the key of AOTAutogradCache that this thread made last


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
            if traced:
                _latest.details = details
            if details is not None:
                self.opaq = details

        codecache.FxGraphHashDetails.__init__ = __init__

    def on_package_load(self, make: Callable[[Any], Any]) -> None:
        """Has packages keep make(what `on_cache_key` adds to the key) with each graph. In another
        process its method `check` is called before the graph is taken from the package; if that
        raises RuntimeError, the graph is compiled again.
        """
        make_key, save = autograd_cache.autograd_cache_key, autograd_cache.AOTAutogradCache.save
        load = aot_autograd_result.deserialize_bundled_cache_entry
        kept: dict[str, Any] = {}  # by key, until the graph is saved

        def autograd_cache_key(*args: Any, **kwargs: Any) -> Any:
            _latest.details = None
            made = make_key(*args, **kwargs)
            if _latest.details is not None and autograd_cache.should_bundle_autograd_cache():
                kept[made[0]] = make(_latest.details)
            return made

        def save_entry(key: str, entry: Any, *args: Any, **kwargs: Any) -> None:
            if key in kept:
                entry.opaq = kept.pop(key)
            return save(key, entry, *args, **kwargs)

        def deserialize_bundled_cache_entry(entry: Any) -> Any:
            if hasattr(entry, "opaq"):
                entry.opaq.check()
            return load(entry)

        autograd_cache.autograd_cache_key = autograd_cache_key
        autograd_cache.AOTAutogradCache.save = staticmethod(save_entry)
        aot_autograd_result.deserialize_bundled_cache_entry = deserialize_bundled_cache_entry
