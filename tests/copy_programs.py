"""Programs that copy tensors before an op writes to them, or pass tensors that share memory to it,
and the ops written in PyTorch, to compare with.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

import opaq

PROGRAMS: list[Callable[..., Any]] = []


def program(function: Callable[..., Any]) -> Callable[..., Any]:
    PROGRAMS.append(function)
    return function


@program
def clone_read(op, t):
    s = t + 1
    op(s.clone(), s)
    return s * 2


@program
def clone_written(op, t):
    s = t + 1
    c = s.clone()
    op(s, c)
    return s * 2, c


@program
def clone_of_input(op, t):
    op(t.clone(), t)
    return t * 2


@program
def input_to_clone(op, t):
    c = t.clone()
    op(t, c)
    return c, t + 1


@program
def plus_zero(op, t):
    s = t + 1
    op(s + 0, s)
    return s


@program
def times_one(op, t):
    s = t + 1
    op(s * 1, s)
    return s


@program
def div_one(op, t):
    s = t + 1
    op(s / 1, s)
    return s


@program
def to_copy(op, t):
    s = t + 1
    op(s.to(torch.float32, copy=True), s)
    return s


@program
def copy_into_empty(op, t):
    s = t + 1
    e = torch.empty_like(s)
    e.copy_(s)
    op(e, s)
    return s, e


@program
def alias_same(op, t):
    s = t + 1
    op(s, s)
    return s


@program
def alias_same_old_read(op, t):
    s = t + 1
    y = s.clone()
    op(s, s)
    return s, y * 2


@program
def alias_same_old_returned(op, t):
    s = t + 1
    y = s.clone()
    op(s, s)
    return s, y


@program
def alias_input(op, t):
    op(t, t)
    return t + 1


@program
def alias_input_old(op, t):
    y = t.clone()
    op(t, t)
    return t + 1, y


@program
def alias_input_old2(op, t):
    y = t.clone()
    op(t, t)
    return t + 1, y * 3


@program
def halves(op, t):
    s = t + 1
    n = s.shape[0] // 2
    op(s[:n], s[n:])
    return s


@program
def halves_clone(op, t):
    s = t + 1
    n = s.shape[0] // 2
    op(s.clone()[:n], s[n:])
    return s


@program
def overlap(op, t):
    s = t + 1
    op(s[:-1], s[1:])
    return s


@program
def overlap_clone(op, t):
    s = t + 1
    op(s.clone()[:-1], s[1:])
    return s


@program
def overlap_clone2(op, t):
    s = t + 1
    op(s[:-1].clone(), s[1:])
    return s


@program
def overlap_input(op, t):
    op(t[:-1], t[1:])
    return t * 2


@program
def overlap_input_clone(op, t):
    op(t[:-1].clone(), t[1:])
    return t * 2


@program
def overlap_old(op, t):
    s = t + 1
    y = s.clone()
    op(s[:-1], s[1:])
    return s, y + 1


@program
def flip(op, t):
    s = t + 1
    op(s.flip(0), s)
    return s


@program
def matmul(op, t):
    s = torch.diag(torch.ones_like(t)) @ t
    op(s.clone(), s)
    return s


@program
def matmul_old(op, t):
    s = torch.diag(torch.ones_like(t)) @ t
    y = s.clone()
    op(y, s)
    return s, y


@program
def twice(op, t):
    s = t + 1
    op(s.clone(), s)
    op(s.clone(), s)
    return s


@program
def twice_c(op, t):
    s = t + 1
    c = s.clone()
    op(c, s)
    op(s, c)
    return s, c


@program
def read_later(op, t):
    s = t + 1
    c = s.clone()
    op(c, s)
    return s * 2, c * 3


@program
def read_later_only(op, t):
    s = t + 1
    c = s.clone()
    op(t, s)
    return s * 2, c * 3


@program
def returned_later(op, t):
    s = t + 1
    c = s.clone()
    op(t, s)
    return s, c


@program
def view_chain(op, t):
    s = (t + 1).view(2, -1).view(-1)
    op(s.clone(), s)
    return s


@program
def strided(op, t):
    s = torch.stack([t, t + 1], 1)
    op(s[:, 0].clone(), s[:, 0])
    return s


@program
def strided2(op, t):
    s = torch.stack([t, t + 1], 1)
    op(s.clone()[:, 0], s[:, 0])
    return s


@program
def strided3(op, t):
    s = torch.stack([t, t + 1], 1)
    op(s[:, 1], s[:, 0])
    return s


@program
def expand_clone(op, t):
    s = t + 1
    op(s[None].expand(1, -1)[0].clone(), s)
    return s


@program
def cat_copy(op, t):
    s = t + 1
    op(torch.cat([s]), s)
    return s


@program
def where_copy(op, t):
    s = t + 1
    op(torch.where(torch.ones_like(s, dtype=torch.bool), s, s), s)
    return s


@program
def contiguous_copy(op, t):
    s = torch.stack([t, t + 1], 1)[:, 0]
    op(s.contiguous(), s)
    return s


@program
def inplace_after(op, t):
    s = t + 1
    c = s.clone()
    op(s, c)
    s.add_(1)
    c.mul_(2)
    return s, c


@program
def input_two_clones(op, t):
    a, b = t.clone(), t.clone()
    op(a, b)
    return a, b, t


@program
def two_clones(op, t):
    s = t + 1
    a, b = s.clone(), s.clone()
    op(a, b)
    return a, b, s


@program
def clone_then_input(op, t):
    c = t.clone()
    op(c, t)
    return c


@program
def times_one_then_input(op, t):
    c = t * 1
    op(c, t)
    return c


@program
def transposed_then_input(op, t):
    c = t.view(2, 3).t() + 0
    op(c[0], t[:2])
    return c, c.t()


@program
def written_then_flipped(op, t):
    op(t.clone(), t)
    t.add_(t.flip(0))
    s = t + 1
    op(s.clone(), t)
    return s


@program
def plus_zero_of_a_part(op, t):
    both = torch.stack([t, t * 2])
    c = both[:, ::2] + 0
    op(c[0], c[1])
    return c, both


@program
def times_one_of_columns(op, t):
    both = torch.stack([t, t * 2])
    c = both.t()[1:5] * 1
    op(c[:, 0], c[:, 1])
    return c


@program
def pad_noop(op, t):
    s = t + 1
    op(torch.nn.functional.pad(s, (0, 0)), s)
    return s


@program
def repeat_noop(op, t):
    s = t + 1
    op(s.repeat(1), s)
    return s


@program
def slice_scatter(op, t):
    s = t + 1
    z = torch.zeros_like(s)
    z[:] = s
    op(z, s)
    return s, z


@program
def double_cast(op, t):
    s = t + 1
    op(s.double().float(), s)
    return s


@program
def relu_relu(op, t):
    s = (t + 1).relu()
    op(s.relu(), s)
    return s


@program
def sum_view(op, t):
    s = t + 1
    y = s.view(-1, 1).sum(1)
    op(y, s)
    return s


@program
def index_all(op, t):
    s = t + 1
    op(s[torch.arange(s.shape[0], device=s.device)], s)
    return s


@program
def read_before(op, t):
    s = t + 1
    y = s * 2
    op(y, s)
    return s, y


@program
def half_written_clone_whole(op, t):
    s = t + 1
    c = s.clone()
    n = s.shape[0] // 2
    op(c[:n], s[:n])
    return s, c


@program
def detach_(op, t):
    s = t + 1
    op(s.detach(), s)
    return s


@program
def const(op, t):
    s = torch.arange(float(t.shape[0]), device=t.device)
    op(s.clone(), s)
    return s + t


@program
def loop(op, t):
    s = t + 1
    for _ in range(3):
        previous = s.clone()
        op(previous, s)
    return s


# ---- what the ops do -----------------------------------------------------------------------------


def reverse_into(src: torch.Tensor, dst: torch.Tensor) -> None:
    n = src.shape[0]
    for i in range(n):
        dst[n - 1 - i] = src[i]


def write_both(a: torch.Tensor, b: torch.Tensor) -> None:
    n = a.shape[0]
    for i in range(n):
        a[i] = a[i] * 2 + b[n - 1 - i]
        b[i] += 3


def add_and_reverse(src: torch.Tensor, dst: torch.Tensor) -> torch.Tensor:
    n = src.shape[0]
    out = torch.empty(n, device=src.device)
    for i in range(n):
        out[i] = src[i] + dst[i]
        dst[n - 1 - i] = src[i]
    return out


# ---- comparing -----------------------------------------------------------------------------------


def results(
    function: Callable[..., Any], inputs: list[torch.Tensor], programs: list[Callable[..., Any]]
) -> dict[str, list[torch.Tensor]]:
    """What each program returns, and the values of its input and of the tensor of which that is a
    part.
    """
    inputs = copy.deepcopy(inputs)
    returned = function(*inputs)
    leaves = [torch.utils._pytree.tree_leaves(value) for value in returned]
    return {
        each.__name__: [*(leaf for leaf in values if isinstance(leaf, torch.Tensor)), whole(given)]
        for each, values, given in zip(programs, leaves, inputs)
    }


def packaged(
    function: Callable[..., Any], inputs: list[torch.Tensor], path: Any
) -> Callable[..., Any]:
    """`function` as a package for these inputs, loaded again."""

    class Model(torch.nn.Module):
        def forward(self, *inputs: torch.Tensor) -> Any:
            return function(*inputs)

    return torch._inductor.aoti_load_package(
        opaq.package(torch.export.export(Model(), tuple(inputs)), str(path))
    )


def whole(part: torch.Tensor) -> torch.Tensor:
    """The whole storage of a tensor, as a tensor."""
    return torch.empty(0, dtype=part.dtype, device=part.device).set_(part.untyped_storage())


def check(
    op: Callable[..., Any],
    meaning: Callable[..., Any],
    programs: list[Callable[..., Any]],
    compile_: Callable[..., Any],
    device: str = "cpu",
    parts: bool = False,
) -> None:
    """Compiles all programs as one graph, each with an input of its own, so that none shares a
    value with another, and compares with eager.
    """
    inputs = example_inputs(programs, device, parts)
    expected = results(
        lambda *inputs: [each(meaning, t) for each, t in zip(programs, inputs)], inputs, programs
    )
    got = results(
        compile_(lambda *inputs: [each(op, t) for each, t in zip(programs, inputs)]),
        inputs,
        programs,
    )
    wrong = [
        name
        for name, values in expected.items()
        if len(values) != len(got[name]) or not all(map(torch.equal, values, got[name]))
    ]
    assert not wrong, wrong


def example_inputs(
    programs: list[Callable[..., Any]], device: str = "cpu", parts: bool = False
) -> list[torch.Tensor]:
    """parts: each is every second element of a part of a larger tensor."""
    inputs = [torch.arange(1.0, 7.0, device=device) + 10 * i for i in range(len(programs))]
    return (
        [torch.full((20,), 0.5, device=device)[3:15:2].copy_(each) for each in inputs]
        if parts
        else inputs
    )
