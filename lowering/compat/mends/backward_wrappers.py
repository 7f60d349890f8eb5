"""C++ wrappers of backward graphs, in torch 2.11."""

from __future__ import annotations

from typing import Any

from torch._inductor import compile_fx, config


def configure_cpp_wrappers() -> None:
    """Gives each graph with a C++ wrapper the configuration that these need. A backward graph is
    compiled when it is first run, where the caller's options are no longer set: torch 2.11 asks
    them whether the wrapper is to be C++, and prints each node into a Python wrapper first."""
    original = compile_fx._compile_fx_inner

    def _compile_fx_inner(*args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("cpp_wrapper"):
            return original(*args, **kwargs)
        with config.patch(compile_fx.get_cpp_wrapper_config()):
            return original(*args, **kwargs)

    compile_fx._compile_fx_inner = _compile_fx_inner
