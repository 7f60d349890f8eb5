"""Kernels that somebody else registers for opaque ops, before or after compiling: eager and
compiled code run the kernel that the dispatcher runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import forked
import pytest
import torch

import opaq
from opaq import _runtime, lowering

SCALE = (
    "void scale(const float* x, double by, float* out, long n) { for (long i = 0; i < n; "
    "++i) out[i] = x[i] * by; }"
)


def scale_op(name: str, by: float = 2.0) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x, float by={by}) -> Tensor", outputs=opaq.like("x"))
    return op.cpu(source=SCALE, entry="scale", args="x, by, out, x.numel()")


def add_into_op(name: str) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor(a!) cache, Tensor x) -> ()")
    source = (
        "void add(float* cache, const float* x, long n) { for (long i = 0; i < n; ++i) "
        "cache[i] += x[i]; }"
    )
    return op.cpu(source=source, entry="add", args="cache, x, x.numel()")


def register(
    name: str, function: Callable[..., Any], key: str, **keywords: Any
) -> torch.library.Library:
    library = torch.library.Library(name.split("::")[0], "IMPL")
    library.impl(name.split("::")[1], function, key, allow_override=True, **keywords)
    return library


def plus_100(x: torch.Tensor, by: float = 2.0) -> torch.Tensor:
    return x + 100


def test_this_torch_shows_its_dispatch_table(unique: str) -> None:
    scale_op(unique)
    assert [len(device) for device in lowering.compat.pytorch.kernel_entries(unique)] == [5, 5]
    assert _runtime.kernel_is_ours(unique, "cpu") and _runtime.kernel_is_ours(unique, "cuda:0")
    library, symbol, included, excluded = lowering.compat.pytorch.local_state()
    assert library and symbol and included and excluded


@pytest.mark.parametrize(
    "key", ["CPU", "BackendSelect", "ADInplaceOrView", "AutogradCPU", "Autograd"]
)
def test_a_kernel_registered_later_runs_and_leaves_with_its_library(unique: str, key: str) -> None:
    op, x = scale_op(unique), torch.ones(3)
    assert op(x).tolist() == [2, 2, 2]
    library = register(unique, plus_100, key)
    assert op(x).tolist() == op.overload(x).tolist() == [101, 101, 101]
    assert torch.compile(lambda x: op(x), fullgraph=True)(x).tolist() == [101, 101, 101]
    library._destroy()
    assert op(x).tolist() == op.overload(x).tolist() == [2, 2, 2]


def test_a_kernel_registered_after_the_compile_runs_in_the_same_graph(unique: str) -> None:
    op, x = scale_op(unique), torch.ones(3)
    compiled = torch.compile(lambda x: op(x) + 1, fullgraph=True)
    assert compiled(x).tolist() == [3, 3, 3]
    library = register(unique, plus_100, "CPU")
    assert compiled(x).tolist() == [102, 102, 102]
    library._destroy()
    assert compiled(x).tolist() == [3, 3, 3]


def test_a_kernel_for_another_device_changes_nothing(unique: str) -> None:
    op = scale_op(unique)
    library = register(unique, plus_100, "CUDA")
    assert _runtime.kernel_is_ours(unique, "cpu") and not _runtime.kernel_is_ours(unique, "cuda:0")
    assert op(torch.ones(1)).item() == 2
    library._destroy()
    assert _runtime.kernel_is_ours(unique, "cuda:0")


def test_a_kernel_registered_before_the_declaration_is_seen(unique: str) -> None:
    library = register(unique, lambda x, by=2.0: x + 7, "AutogradCPU")
    op, x = scale_op(unique), torch.ones(1)
    assert op(x).item() == op.overload(x).item() == 8
    library._destroy()
    assert op(x).item() == op.overload(x).item() == 2


def test_a_kernel_registered_for_a_writing_op(unique: str) -> None:
    op, cache, x = add_into_op(unique), torch.zeros(2), torch.ones(2)
    compiled = torch.compile(lambda cache, x: op(cache, x), fullgraph=True)
    op(cache, x)
    compiled(cache, x)
    assert cache.tolist() == [2, 2]
    library = register(unique, lambda cache, x: [cache.fill_(50), None][1], "CPU")
    for call in (op, op.overload, compiled):
        cache.zero_()
        call(cache, x)
        assert cache.tolist() == [50, 50]
    library._destroy()


def test_register_kernel_of_torch_library(unique: str) -> None:
    op, x = scale_op(unique), torch.ones(1)
    compiled = torch.compile(lambda x: op(x), fullgraph=True)
    assert compiled(x).item() == 2
    torch.library.register_kernel(unique, "cpu", plus_100)
    assert op(x).item() == op.overload(x).item() == compiled(x).item() == 101


def test_autocast_rules_are_obeyed(unique: str) -> None:
    op, x = scale_op(unique), torch.ones(1, dtype=torch.float64)
    op.cpu(
        name="wide",
        source=SCALE.replace("float*", "double*"),
        entry="scale",
        args="x, by, out, x.numel()",
        requires="x.dtype == float64",
        priority=1,
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert op(x).dtype == torch.float64  # no rule: as it is
    torch.library.register_autocast(unique, "cpu", torch.float32)
    compiled = torch.compile(lambda x: op(x.float()), fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = x.to(torch.bfloat16)
        assert op(half).dtype == op.overload(half).dtype == compiled(half).dtype == torch.float32
    assert op(x).dtype == torch.float64


def test_a_vmap_rule_is_obeyed(unique: str) -> None:
    op = scale_op(unique)
    torch.library.register_vmap(unique, lambda info, dims, x, by=2.0: (x + 1000, 0))
    assert torch.func.vmap(op)(torch.ones(2)).tolist() == [1001, 1001]
    assert op(torch.ones(2)).tolist() == [2, 2]


def test_direct_calls_stay_direct_in_inference_mode_and_under_autocast(unique: str) -> None:
    op, x = scale_op(unique), torch.ones(1)
    for mode in (torch.inference_mode(), torch.autocast("cpu"), torch.no_grad()):
        with mode:
            _, events = with_dispatcher_events(lambda: op(x))
            assert unique not in events


def with_dispatcher_events(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    """(the result of a call, the ops that the dispatcher ran for it). With a profiler, opaq would
    call the dispatcher; this observer does not change what opaq does.
    """
    seen: list[str] = []
    original = torch._ops.OpOverload.__call__

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(self.name())
        return original(self, *args, **kwargs)

    torch._ops.OpOverload.__call__ = watched
    try:
        return call(), seen
    finally:
        torch._ops.OpOverload.__call__ = original


def test_an_unknown_torch_always_asks_the_dispatcher(unique: str) -> None:
    code = f"""
import torch, opaq
from opaq import lowering, _runtime
lowering.compat.pytorch.kernel_entries = lambda name: []
op = opaq.op("{unique}(Tensor x, float by=2.0) -> Tensor", outputs=opaq.like("x"))
op.cpu(source={SCALE!r}, entry="scale", args="x, by, out, x.numel()")
assert not _runtime.kernel_is_ours("{unique}", "cpu")
assert op(torch.ones(1)).item() == 2
"""
    forked.run([sys.executable, "-c", code], check=True)


def test_jit_trace_records_the_op(unique: str) -> None:
    op, into = scale_op(unique), add_into_op(unique + "_into")
    traced = torch.jit.trace(lambda x: op(x) + x, (torch.ones(1),))
    assert traced(torch.full((1,), 10.0)).item() == 30

    def write(cache: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        cache = cache + 0
        into(cache, x)
        return cache + 1

    traced = torch.jit.trace(write, (torch.zeros(1), torch.ones(1)))
    assert traced(torch.full((1,), 5.0), torch.full((1,), 10.0)).item() == 16


def test_a_c_wrapper_refuses_what_it_was_not_compiled_for(unique: str) -> None:
    op, x = scale_op(unique), torch.ones(1)
    compiled = torch.compile(lambda x: op(x), fullgraph=True, options={"cpp_wrapper": True})
    assert compiled(x).item() == 2
    library = register(unique, plus_100, "CPU")
    with pytest.raises(
        RuntimeError,
        match=rf"{unique}: another kernel was registered for it after this graph was compiled "
        r"for a C\+\+ wrapper",
    ):
        compiled(x)
    library._destroy()
    assert compiled(x).item() == 2


# ---- torch.library.custom_op by another name -----------------------------------------------------


def custom(name: str, add: float = 1.0, **keywords: Any) -> Any:
    made = opaq.custom_op(
        name, lambda x: x + add, mutates_args=(), schema="(Tensor x) -> Tensor", **keywords
    )
    made.register_fake(torch.empty_like)
    return made


@pytest.mark.parametrize("device_types", [None, "cpu"])
def test_a_kernel_registered_for_a_compiled_python_function_runs(
    unique: str, device_types: str | None
) -> None:
    op, x = custom(unique, device_types=device_types), torch.ones(1)
    compiled = torch.compile(lambda x: op(x), fullgraph=True)
    assert compiled(x).item() == 2
    op.register_kernel("cpu")(lambda x: x + 100)
    assert compiled(x).item() == op(x).item() == 101
    torch.compiler.reset()
    assert torch.compile(lambda x: op(x), fullgraph=True)(x).item() == 101


def test_a_kernel_registered_from_elsewhere_for_a_python_function_runs(unique: str) -> None:
    op, x = custom(unique), torch.ones(1)
    compiled = torch.compile(lambda x: op(x), fullgraph=True)
    assert compiled(x).item() == 2
    library = register(unique, lambda x: x + 100, "CPU")
    assert compiled(x).item() == op(x).item() == 101
    library._destroy()
    assert compiled(x).item() == op(x).item() == 2


def test_a_python_function_declared_again_replaces_the_first(unique: str) -> None:
    x = torch.ones(1)
    for add in (1.0, 50.0, 7.0):
        op = custom(unique, add)
        assert op(x).item() == torch.compile(lambda x: op(x), fullgraph=True)(x).item() == 1 + add  # noqa: B023
        torch.compiler.reset()


def test_an_overload_name(unique: str) -> None:
    two = opaq.custom_op(
        f"{unique}.two",
        lambda x, y: x * y,
        mutates_args=(),
        schema="(Tensor x, Tensor y) -> Tensor",
    )
    two.register_fake(lambda x, y: torch.empty_like(x))
    one = custom(f"{unique}.one", 30.0)
    x = torch.full((2,), 3.0)
    assert two(x, x).tolist() == [9, 9] and one(x).tolist() == [33, 33]
    compiled = torch.compile(lambda x: two(one(x), x), fullgraph=True)
    assert compiled(x).tolist() == [99, 99]
    nodes = [node for node in lowering.nodes() if node.op.startswith(unique)]
    assert {node.op for node in nodes} == {f"{unique}.one", f"{unique}.two"}
    assert {node.implementation for node in nodes} == {"python"}


# ---- replace=True --------------------------------------------------------------------------------


def test_every_handle_means_the_newest_declaration(unique: str) -> None:
    old, x = scale_op(unique), torch.ones(2)
    old.reference(lambda x, by=2.0: x * 0)
    compiled = torch.compile(lambda x: old(x) + 0, fullgraph=True)
    assert compiled(x).tolist() == [2, 2]
    doubled = opaq.tensor(["2 * x.size(0)"], dtype="x.dtype")
    new = opaq.op(f"{unique}(Tensor x, float by=2.0) -> Tensor", outputs=doubled, replace=True)
    new.cpu(
        source=SCALE.replace("x[i] * by", "x[i / 2] * 9"),
        entry="scale",
        args="x, by, out, out.numel()",
    )
    for call in (old, new, new.overload, compiled):
        assert call(x).tolist() == [9, 9, 9, 9]
    assert old.explain(x) == new.explain(x) == "cpu: chosen"
    assert old.info == new.info and not old.info["has_reference"]
