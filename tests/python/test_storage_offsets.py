"""Graph inputs that do not begin at the start of their storage: compiled code reads and writes the
same elements through their views as eager.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils._pytree import tree_leaves

import opaq

Program = Callable[[Callable[..., None], torch.Tensor], object]


def transposed(write: Callable[..., None], x: torch.Tensor) -> object:
    write(x[1:].t(), x[:-1].clone().t())
    return x


def as_strided(write: Callable[..., None], x: torch.Tensor) -> object:
    write(torch.as_strided(x, (3, 3), (1, 4), 6), x[1:, 1:4].clone())
    return x


def without_an_offset(write: Callable[..., None], x: torch.Tensor) -> object:
    written = x + 1
    write(torch.as_strided(written[1:], (4, 2), (1, 5)), torch.as_strided(x[1:], (4, 2), (2, 1)))
    return written


def written_before(write: Callable[..., None], x: torch.Tensor) -> object:
    x[:, 1:].mul_(2)
    write(x[1], x[1].clone())
    write(x.t()[2], x[:, 0].clone())
    return x


def copied_for_the_first_write(write: Callable[..., None], x: torch.Tensor) -> object:
    old = x.clone()
    write(x[:2].t(), x[:2].clone().t())
    late = old * 2
    write(x[1:].t(), x[1:].clone().t())
    write(x[2], x[2] + 1)
    return x, late


def values(offset: int) -> torch.Tensor:
    return torch.arange(20.0 + offset)[offset:].view(4, 5)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "program",
    [transposed, as_strided, without_an_offset, written_before, copied_for_the_first_write],
)
def test_views_of_an_input_are_taken_where_they_are(
    program: Program, dynamic: bool, unique: str
) -> None:
    """torch 2.11 counts their offsets from the start of the input. One compilation serves all
    offsets if nothing else depends on them.
    """

    def write(target: torch.Tensor, source: torch.Tensor) -> None:
        target.mul_(2).add_(source)

    op = opaq.custom_op(unique, write, mutates_args={"target"})
    compiled = torch.compile(lambda x: program(op, x), fullgraph=True, dynamic=dynamic)
    for offset in (3, 0, 5) if program is not as_strided else (3,):
        x = values(offset)
        expected = values(offset)
        expected_result = program(write, expected)
        assert all(map(torch.equal, tree_leaves(compiled(x)), tree_leaves(expected_result)))
        assert torch.equal(x, expected)
