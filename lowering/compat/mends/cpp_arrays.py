"""Arrays of sizes and strides that Inductor's C++ wrappers declare, in torch 2.11."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu


def keep_arrays_apart() -> None:
    """Keeps Inductor from using an array above its declaration. torch 2.11 remembers arrays by the
    place to which it prints them, and identifies a place by the address of a bound method, which
    another such method may get later. Graphs without opaque ops are affected too."""
    original = CppWrapperCpu.codegen_int_array_var

    def codegen_int_array_var(
        self: Any, int_array: str, writeline: Callable[..., None], *args: Any, **kwargs: Any
    ) -> str:
        places = self.__dict__.setdefault("opaq_places_of_arrays", {})
        # kept alive, so that no other method gets the same address
        writeline = places.setdefault(id(getattr(writeline, "__self__", writeline)), writeline)
        return original(self, int_array, writeline, *args, **kwargs)

    CppWrapperCpu.codegen_int_array_var = codegen_int_array_var
