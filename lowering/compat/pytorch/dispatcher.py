"""Where PyTorch's dispatcher keeps its state in memory. These addresses are no documented
interface: each is found by an experiment, and used only if this torch behaves as expected.

The runtime reads them at every call, in a few nanoseconds, to see whether a direct launch still
does what the dispatcher would do.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

import torch

# The dispatch keys that a call on plain tensors of a device passes, in reverse order. Tracing
# happens between the second and the third.
KEYS = (
    ("CPU", "BackendSelect", "ADInplaceOrView", "AutogradCPU", "AutocastCPU"),
    ("CUDA", "BackendSelect", "ADInplaceOrView", "AutogradCUDA", "AutocastCUDA"),
)
_STATE = ("libc10.so", "_ZN3c104impl26raw_local_dispatch_key_setE")
_libraries: list[Any] = []  # a registration lasts as long as its library
_pins: dict[str, Any] = {}  # by name


class Dispatcher:
    def local_state(self) -> tuple[str, str, int, int]:
        """This thread's included and excluded dispatch keys: (library, symbol of the thread-local
        pair of words, bits of the first word and of the second that inference mode and autocast
        set).

        The words hold the difference to the default, so both are normally zero. ("", "", 0, 0) if
        this torch keeps them in another way."""
        libc10 = ctypes.CDLL(_STATE[0], mode=os.RTLD_LAZY | os.RTLD_NOLOAD)  # loaded by torch
        try:
            words = (ctypes.c_uint64 * 2).in_dll(libc10, _STATE[1])
        except ValueError:
            return ("", "", 0, 0)

        def state() -> tuple[int, int, int, int]:
            include, exclude = (
                torch._C._dispatch_tls_local_include_set(),
                torch._C._dispatch_tls_local_exclude_set(),
            )
            return words[0], words[1], include.raw_repr(), exclude.raw_repr()

        with torch.inference_mode(False):
            before = state()
            with torch.inference_mode(True):
                inference = state()
        included, excluded, told_included, told_excluded = (
            a ^ b for a, b in zip(before, inference)
        )
        if not included or not excluded or included != told_included or excluded != told_excluded:
            return ("", "", 0, 0)
        autocast = torch._C.DispatchKeySet(
            torch._C._dispatch_key_parse("AutocastCPU")
        ) | torch._C.DispatchKeySet(torch._C._dispatch_key_parse("AutocastCUDA"))
        return (*_STATE, included, excluded | autocast.raw_repr())

    def kernel_entries(self, qualname: str) -> list[list[int]]:
        """For each device, the addresses at which the dispatcher keeps the op's kernels for KEYS
        (two words each: functor, boxed function); empty if they are unknown. Valid as long as the
        op is defined."""
        name, _, overload = qualname.partition(".")
        address = _operator(name, overload)[0]
        if not address or not _table():
            return []
        return [[address + _table()[key] for key in device] for device in KEYS]

    def pinned_kernel_entries(self, qualname: str) -> list[list[int]]:
        """As kernel_entries, but valid until the process ends. torch.library.custom_op undefines an
        op that is declared again, and the dispatcher frees an op without definition and kernels; a
        kernel for an obsolete device type (FPGA) prevents that."""
        namespace, name = qualname.split("::")
        if qualname not in _pins:
            _pins[qualname] = library = torch._C._dispatch_library("IMPL", namespace, "", "opaq", 0)
            library.impl(name, "FPGA", _no_such_device, False)
        return self.kernel_entries(qualname)

    def is_known(self, qualname: str) -> bool:
        """Whether anybody has defined an op of this name or registered a kernel for it."""
        return torch._C._dispatch_has_kernel(qualname)


@functools.cache
def _table() -> dict[str, int]:
    """For each key in KEYS, the offset in bytes of its kernel from the address of an operator;
    empty if this torch keeps kernels in another way. Found by registering kernels for one key after
    another with an operator made for this.
    """
    library = torch._C._dispatch_library("FRAGMENT", "opaq_probe", "", "opaq", 0)
    library.def_("table(Tensor x) -> Tensor", "")
    _libraries.append(library)
    address, size = _operator("opaq_probe::table", "")
    if not address:
        return {}
    words = (ctypes.c_size_t * (size // ctypes.sizeof(ctypes.c_size_t))).from_address(address)
    offsets: dict[str, int] = {}
    functions = set()
    keys = dict.fromkeys(key for device in KEYS for key in device)
    for key in keys:
        before = list(words)
        library.impl("table", key, lambda x: x, False)
        after = list(words)
        pairs = zip(before, after, before[1:], after[1:])
        changed = [
            i
            for i, (old, new, old_function, new_function) in enumerate(pairs)
            if not old and new > 4096 and old_function != new_function
        ]
        if len(changed) != 1:
            return {}
        offsets[key] = changed[0] * ctypes.sizeof(ctypes.c_size_t)
        functions.add(after[changed[0] + 1])
    return offsets if len(functions) == 1 and len(set(offsets.values())) == len(keys) else {}


def _no_such_device(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError("opaq has no kernels for this device")


def _operator(name: str, overload: str) -> tuple[int, int]:
    """(address of an operator's entry, bytes that may be read there). (0, 0) if its handle is not,
    as in every torch so far, an object with two pointers: to the entry, and to its node in a list.
    """
    handle = torch._C._dispatch_find_schema_or_throw(name, overload)
    place = ctypes.c_void_p.from_address(id(handle) + object.__basicsize__).value
    if not place:
        return 0, 0
    entry, node = (ctypes.c_size_t * 2).from_address(place)
    links = 2 * ctypes.sizeof(ctypes.c_size_t)
    if entry - node != links:
        return 0, 0
    usable = ctypes.CDLL(None).malloc_usable_size
    usable.restype, usable.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
    return entry, usable(node) - links
