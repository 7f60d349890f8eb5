"""The runtime library of TVM-FFI, which libraries with functions for `Op.tvm_ffi` need."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os


@functools.cache
def load_tvm_ffi() -> None:
    """Loads libtvm_ffi.so of the package apache-tvm-ffi where it is installed, without importing
    the package, so that libraries that are linked with it find it. Elsewhere the loader searches
    for it when such a library is opened."""
    found = importlib.util.find_spec("tvm_ffi")
    for folder in (found and found.submodule_search_locations) or ():
        path = os.path.join(folder, "lib", "libtvm_ffi.so")
        if os.path.exists(path):
            ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
            return
