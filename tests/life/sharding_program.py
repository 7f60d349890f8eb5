"""Run in four processes by test_sharding.py: shardings that follow from references."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

# One for each process: PyTorch's key of compiled graphs does not tell uneven parts apart.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.environ["SHARDING_CACHE"] + os.environ["RANK"]

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
from torch.testing import assert_close

import opaq

dist.init_process_group("gloo")
rank = dist.get_rank()
line = init_device_mesh("cpu", (4,))
grid = init_device_mesh("cpu", (2, 2))
seen: list[tuple[int, ...]] = []  # the shapes with which kernels ran
ROWS, COLUMNS, WHOLE, SUM = Shard(0), Shard(1), Replicate(), Partial()


def declare(schema: str, outputs: Any, reference: Callable[..., Any] | None, **how: Any) -> opaq.Op:
    op = opaq.op("derived::" + schema, outputs=outputs, **how)

    if reference is None:
        return op

    @op.register_kernel("cpu")
    def _(*args: Any, **kwargs: Any) -> Any:
        first = args[0] if isinstance(args[0], torch.Tensor) else args[0][0]
        seen.append(tuple(first.shape))
        return reference(*args, **kwargs)

    if how.get("tags") is None:
        op.reference(reference)
    return op


def inverse(x: torch.Tensor) -> torch.Tensor:
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def norm_backward(
    grad_y: torch.Tensor, x: torch.Tensor, w: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    r, g = inverse(x), grad_y * w
    grad_x = g * r - x * r.pow(3) * (g * x).mean(-1, keepdim=True)
    return grad_x, (grad_y * x * r).sum(0)


norm = declare(
    "norm(Tensor x, Tensor w) -> (Tensor y)",
    opaq.like("x"),
    lambda x, w: x * inverse(x) * w,
)
declare(
    "norm_backward(Tensor grad_y, Tensor x, Tensor w) -> (Tensor grad_x, Tensor grad_w)",
    {"grad_x": opaq.like("x"), "grad_w": opaq.like("w")},
    norm_backward,
)
norm.backward("derived::norm_backward")
linear = declare(
    "linear(Tensor x, Tensor w) -> (Tensor y)",
    opaq.tensor("x.size(0), w.size(0)", dtype="x.dtype"),
    lambda x, w: x @ w.t(),
)
scan = declare(
    "scan(Tensor x, bool down) -> Tensor",
    opaq.like("x"),
    lambda x, down: x.cumsum(0 if down else 1),
)
softmax = declare("softmax(Tensor x) -> Tensor", opaq.like("x"), lambda x: x.softmax(0))
mean = declare(
    "mean(Tensor x) -> Tensor", opaq.tensor("x.size(1)", dtype="x.dtype"), lambda x: x.mean(0)
)
average = declare(
    "average(Tensor x) -> Tensor",
    opaq.tensor("x.size(1)", dtype="x.dtype"),
    lambda x: x.sum(0) / x.size(0),
)
sized = declare("sized(Tensor x) -> Tensor", opaq.like("x"), lambda x: x * x.size(0))
place = declare(
    "place(Tensor x) -> Tensor",
    opaq.like("x"),
    lambda x: x + torch.arange(x.size(1), device=x.device),
)
turned = declare(
    "turned(Tensor x) -> Tensor",
    opaq.tensor("x.size(0), ceil_div(x.size(1), 2), 2", dtype="x.dtype"),
    lambda x: x.view(x.size(0), 2, -1).transpose(1, 2) * 2,
)
flat = declare(
    "flat(Tensor x) -> Tensor", opaq.tensor("x.numel()", dtype="x.dtype"), lambda x: x.reshape(-1)
)
joined = declare(
    "joined(Tensor[] xs) -> Tensor",
    opaq.tensor("xs[0].size(0), xs[0].size(1) + xs[1].size(1)", dtype="xs[0].dtype"),
    lambda xs: torch.cat(xs, 1),
)
product = declare(
    "product(Tensor x, Tensor w) -> Tensor",
    opaq.like("x"),
    lambda x, w: x * w,
    tags=torch.Tag.pointwise,
)

torch.manual_seed(0)
x, w, square = torch.randn(8, 6), torch.randn(6), torch.randn(4, 6)
uneven, short = torch.randn(7, 6), torch.randn(5, 6)  # of `short`, one process has nothing

# an op, its tensors with their placements, other arguments, the shape that it gets in the first
# process, and how its result is placed
CASES = [
    (norm, [(x, ROWS), (w, WHOLE)], [], (2, 6), ROWS),
    (norm, [(x, COLUMNS), (w, ROWS)], [], (8, 6), WHOLE),
    (norm, [(uneven, ROWS), (w, WHOLE)], [], (2, 6), ROWS),
    (norm, [(short, ROWS), (w, ROWS)], [], (2, 6), ROWS),
    (linear, [(x, ROWS), (square, WHOLE)], [], (2, 6), ROWS),
    (linear, [(x, WHOLE), (square, ROWS)], [], (8, 6), COLUMNS),
    (linear, [(x[:, :4], COLUMNS), (square[:, :4], COLUMNS)], [], (8, 1), SUM),
    (scan, [(x, ROWS)], [True], (8, 6), WHOLE),
    (scan, [(x, ROWS)], [False], (2, 6), ROWS),
    (softmax, [(x, ROWS)], [], (8, 6), WHOLE),
    (softmax, [(x, COLUMNS)], [], (8, 2), COLUMNS),
    (mean, [(x, ROWS)], [], (8, 6), WHOLE),
    (average, [(x, ROWS)], [], (8, 6), WHOLE),
    (sized, [(x, ROWS)], [], (8, 6), WHOLE),
    (sized, [(x, COLUMNS)], [], (8, 2), COLUMNS),
    (place, [(x, ROWS)], [], (2, 6), ROWS),
    (place, [(x, COLUMNS)], [], (8, 6), WHOLE),
    (turned, [(x, ROWS)], [], (2, 6), ROWS),
    (flat, [(x, ROWS)], [], (2, 6), ROWS),
    (flat, [(uneven, ROWS)], [], (7, 6), WHOLE),
    (product, [(x, ROWS), (w, WHOLE)], [], (2, 6), ROWS),
    (product, [(x, COLUMNS), (w, ROWS)], [], (8, 2), COLUMNS),
]
wrong = []
for op, tensors, rest, shape, placement in CASES:
    spread = [distribute_tensor(value, line, [where]) for value, where in tensors]
    y = op(*spread, *rest)
    what = op, [where for _, where in tensors], rest, y.placements, seen[-1]
    if y.placements != (placement,) or (rank == 0 and seen[-1] != shape):
        wrong.append(what)
    assert_close(y.full_tensor(), op(*(value for value, _ in tensors), *rest), msg=str(what))
assert not wrong, "\n".join(map(str, wrong))
y = joined([distribute_tensor(value, line, [ROWS]) for value in (x, x + 1)])
assert y.placements == (ROWS,) and seen[-1] == (2, 6)
assert_close(y.full_tensor(), torch.cat([x, x + 1], 1))


def trained(call: Callable[..., Any], mesh: Any, rows: list[Any], whole: torch.Tensor) -> None:
    """The result and the gradients of linear(norm(x, w), square), against one process."""
    leaves = [
        distribute_tensor(whole, mesh, rows).requires_grad_(),
        distribute_tensor(w, mesh, [WHOLE] * mesh.ndim).requires_grad_(),
    ]
    plain = [whole.clone().requires_grad_(), w.clone().requires_grad_()]
    y, expected = call(*leaves), norm(*plain)
    assert y.placements == tuple(rows)
    y.pow(2).sum().backward()
    expected.pow(2).sum().backward()
    assert_close(y.full_tensor(), expected)
    for leaf, one in zip(leaves, plain):
        assert_close(leaf.grad.full_tensor(), one.grad)


def calls() -> list[Callable[..., Any]]:
    backends = ("inductor", "opaq")
    return [norm, *(torch.compile(lambda x, w: norm(x, w), backend=each) for each in backends)]


for call in calls():
    torch._dynamo.reset()
    trained(call, line, [ROWS], uneven)
    trained(call, grid, [ROWS, ROWS], x)
    y = linear(
        distribute_tensor(x, grid, [ROWS, WHOLE]), distribute_tensor(square, grid, [WHOLE, ROWS])
    )
    assert y.placements == (ROWS, COLUMNS) and seen[-1] == (4, 6)
    assert_close(y.full_tensor(), x @ square.t())

written = declare("written(Tensor(a!) x) -> ()", None, None)
random = declare("random(Tensor x) -> Tensor", opaq.like("x"), torch.rand_like, effects="random")
unknown = declare("unknown(Tensor x) -> Tensor", opaq.like("x"), None)
for op, message in (
    (written, "derived::written writes to arguments (`x`), which DTensor cannot follow"),
    (random, "derived::random has no sharding rule: a call does more than compute its results"),
    (unknown, "derived::unknown has no sharding rule: it has no reference to derive"),
):
    try:
        op(distribute_tensor(x, line, [ROWS]))
    except Exception as error:
        assert message in str(error), error
    else:
        raise AssertionError(op)
unknown.reference(torch.neg)  # from now on it has a rule
assert unknown(distribute_tensor(x, line, [ROWS])).placements == (ROWS,)
if rank == 0:
    print("agree")
dist.destroy_process_group()
