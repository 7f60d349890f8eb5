"""Ops that are kept out of CUDA graphs: what is in a graph runs without being called again."""

from __future__ import annotations

import pytest
import torch

import opaq


@pytest.mark.parametrize("kept_out", ["no", "by name", "by tag"])
def test_a_graph_is_split_at_an_op(unique: str, kept_out: str) -> None:
    calls = []
    unsafe = (torch.Tag.cudagraph_unsafe,) if kept_out == "by tag" else ()
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"), tags=unsafe)

    def double(x: torch.Tensor, y: torch.Tensor) -> None:
        calls.append(1)
        torch.mul(x, 2, out=y)

    op.python(double, device="cuda")
    named = [f"{unique}.default"] if kept_out == "by name" else []
    patches = {"custom_should_partition_ops": named, "graph_partition": True}
    with torch._inductor.config.patch(patches):
        compiled = torch.compile(lambda x: op(x + 1) - 1, mode="reduce-overhead", fullgraph=True)
        for i in range(6):
            x = torch.full((100,), float(i), device="cuda")
            assert torch.equal(compiled(x), 2 * (x + 1) - 1)
            if i == 3:
                before = len(calls)
    assert len(calls) - before == (0 if kept_out == "no" else 2)
