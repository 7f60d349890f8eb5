"""Arrays of sizes and strides that Inductor's C++ wrappers declare, in torch 2.11."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu


def keep_arrays_apart() -> None:
    """Keeps Inductor from naming an array that it declares further down: it remembers arrays by
    where it writes them, and tells places apart by the address of a bound method, which the next
    such method may have. torch 2.15 does not; stock graphs too fail there with a C++ error, by
    chance."""
    original = CppWrapperCpu.codegen_int_array_var

    def codegen_int_array_var(
        self: Any, int_array: str, writeline: Callable[..., None], *args: Any, **kwargs: Any
    ) -> str:
        places = self.__dict__.setdefault("opaq_places_of_arrays", {})
        writeline = places.setdefault(
            id(getattr(writeline, "__self__", writeline)), writeline
        )  # kept, so that no other gets its address
        return original(self, int_array, writeline, *args, **kwargs)

    CppWrapperCpu.codegen_int_array_var = codegen_int_array_var
