"""Time to lower and print opaque nodes: Inductor's compile time of chains of 10 to 1000 ops, and
what one more op costs.

    python bench/lowering.py            (no GPU needed)
"""

from __future__ import annotations

import time

import torch
from common import save

import opaq
from opaq import lowering

LENGTHS = (10, 100, 300, 1000)


def main() -> None:
    op = opaq.op("bench::scale(Tensor x, float by) -> Tensor", outputs=opaq.like("x"))
    op.cpu(
        source="void scale(const float* x, double by, float* out, long n) { for (long i = 0; i "
        "< n; ++i) out[i] = x[i] * by; }",
        entry="scale",
        args="x, by, out, x.numel()",
    )
    x = torch.rand(64)
    op(x, 1.0)
    lowering.activate()
    from opaq.lowering import node
    from opaq.lowering.compat.inductor import inductor

    spent, total = {}, 0.0

    def timed(function):
        def call(*args, **kwargs):
            nonlocal total
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                total += time.perf_counter() - start

        return call

    lowerings = inductor.lowerings()
    lowerings[op.overload], node.OpaqueKernel.codegen = (
        timed(lowerings[op.overload]),
        timed(node.OpaqueKernel.codegen),
    )
    for length in LENGTHS:
        torch.compiler.reset()
        total = 0.0

        def chain(x):
            for _ in range(length):
                x = op(x, 1.0)
            return x

        with torch.no_grad():
            start = time.perf_counter()
            torch.compile(chain, fullgraph=True, options={"fx_graph_cache": False})(x)
            spent[length] = {
                "compile_s": round(time.perf_counter() - start, 3),
                "ours_ms_per_node": round(total * 1e3 / length, 4),
            }
    save("lowering", {"by_length": spent}, what=__doc__)


if __name__ == "__main__":
    main()
