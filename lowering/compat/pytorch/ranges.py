"""Names for what runs in a part of a program: NVTX ranges, and annotations of captured kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch.cuda
from torch.cuda import nvtx

from opaq import _runtime


class Ranges:
    def named(
        self, function: Callable[..., Any], name: str, facts: Mapping[str, str]
    ) -> Callable[..., Any]:
        """The function, each call of which is an NVTX range. Kernels that it adds to a CUDA graph
        under torch.cuda.graph(..., enable_annotations=True) are annotated with name and facts (not
        in torch 2.11, which has no annotations). Raises MissingError if torch has no NVTX.
        """
        try:
            nvtx.range_push(name)
            nvtx.range_pop()
        except RuntimeError as error:
            raise _runtime.MissingError(
                f"{name}: NVTX ranges need a torch that is built with CUDA ({error}); leave the "
                'option "nvtx" out'
            ) from None
        push, pop = nvtx.range_push, nvtx.range_pop
        in_range = function
        if annotations := getattr(torch.cuda, "graph_annotations", None):
            mark = functools.partial(annotations.mark_kernels, {"name": name, **facts})

            def in_range(*args: Any, **kwargs: Any) -> Any:
                with mark(backward=False):
                    return function(*args, **kwargs)

        def call(*args: Any, **kwargs: Any) -> Any:
            push(name)
            try:
                return in_range(*args, **kwargs)
            finally:
                pop()

        return call
