"""Ops on DTensors, in processes that talk over gloo, eager and compiled; rules that are refused."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
from typing import Any

import forked
import pytest
import torch

import opaq

PROGRAM = """
import os

# AOTAutograd's cache does not tell ranks apart: from a shared one, a rank takes another's slice.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.environ["SHARDING_CACHE"] + os.environ["RANK"]
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing import assert_close

import opaq

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
seen = []


def declare(schema, outputs, sharding, kernel):
    op = opaq.op(schema, outputs=outputs, sharding=sharding)

    @op.register_kernel("cpu")
    def _(x, *rest, **keywords):
        seen.append(tuple(x.shape))
        return kernel(x, *rest, **keywords)

    return op


def spread(value, placement):
    return distribute_tensor(value, mesh, [placement])


torch.manual_seed(0)
x, w = torch.randn(8, 6), torch.randn(6)

rows = declare(
    "sharded::rows(Tensor x, Tensor w, float by=2.0, *, int k=1) -> (Tensor y, Tensor s)",
    {"y": opaq.like("x"), "s": opaq.tensor("x.shape[:-1]", dtype="x.dtype")},
    "rows",
    lambda x, w, by=2.0, *, k=1: (x * w * by, x.sum(-1)),
)
rows.backward(
    lambda ctx, y, s: (y * ctx.w * 2 + s[:, None], None, None, None),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "w", inputs[1]),
)
for call in (rows, torch.compile(lambda x, w: rows(x, w))):
    for placement, shape in ((Shard(0), (4, 6)), (Shard(1), (8, 6)), (Replicate(), (8, 6))):
        y, s = call(spread(x, placement), spread(w, Replicate()))
        assert_close((y.full_tensor(), s.full_tensor()), (x * w * 2, x.sum(-1)))
        assert seen[-1] == shape
    leaf = spread(x, Shard(0)).requires_grad_()
    y, s = call(leaf, spread(w, Replicate()))
    (y.sum() + s.sum()).backward()
    assert_close(leaf.grad.full_tensor(), (2 * w + 1).expand(8, 6))

pointwise = declare(
    "sharded::pointwise(Tensor x, Tensor y) -> Tensor",
    opaq.like("x"),
    "pointwise",
    lambda x, y: x * y,
)
for call in (pointwise, torch.compile(lambda x, y: pointwise(x, y))):
    for first, second in ((Shard(0), Shard(0)), (Shard(1), Shard(1)), (Replicate(), Shard(1))):
        y = call(spread(x, first), spread(x + 1, second))
        assert_close(y.full_tensor(), x * (x + 1))
        assert y.placements == (second,)
    assert_close(call(spread(x, Shard(1)), spread(w, Shard(0))).full_tensor(), x * w)

by_function = declare(
    "sharded::by_function(Tensor x) -> Tensor",
    opaq.like("x"),
    lambda x: [([Replicate()], [Replicate()]), ([Shard(1)], [Shard(1)])],
    lambda x: x.cumsum(0),
)
y = by_function(spread(x, Shard(1)))
assert y.placements == (Shard(1),) and seen[-1] == (8, 3)
assert_close(y.full_tensor(), x.cumsum(0))

unsplit = declare("sharded::none(Tensor x) -> Tensor", opaq.like("x"), None, lambda x: x)
try:
    unsplit(spread(x, Shard(0)))
except Exception as error:
    assert "sharded::none has no sharding rule: it has no reference" in str(error), error
else:
    raise AssertionError("it has no rule")
opaq.op("sharded::by_function(Tensor x) -> Tensor", outputs=opaq.like("x"), replace=True)
try:
    by_function(spread(x, Shard(1)))
except Exception as error:
    assert "sharded::by_function has no sharding rule: it has no reference" in str(error), error
else:
    raise AssertionError("its rule was taken back")
if dist.get_rank() == 0:
    print("agree")
dist.destroy_process_group()
"""


def test_two_processes(tmp_path: pathlib.Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    run(program, 2, SHARDING_CACHE=str(tmp_path / "rank"))


@pytest.mark.long
def test_rules_from_references(tmp_path: pathlib.Path) -> None:
    program = pathlib.Path(__file__).with_name("sharding_program.py")
    run(program, 4, SHARDING_CACHE=str(tmp_path / "rank"))


def run(program: pathlib.Path, processes: int, **variables: str) -> None:
    """Starts it as torchrun does."""
    with socket.create_server(("localhost", 0)) as unused:
        port = unused.getsockname()[1]
    everywhere = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    everywhere |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    everywhere |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    started = [
        forked.start(
            [sys.executable, program],
            inductor=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=everywhere | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(processes)
    ]
    try:
        printed = [process.communicate(timeout=500) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, printed, strict=True):
        assert process.returncode == 0, errors[-4000:]
    assert "agree" in printed[0][0]


@pytest.mark.parametrize(
    ("schema", "sharding", "message"),
    [
        ("(Tensor x) -> Tensor", "columns", r"sharding: got 'columns' \(str\); expected \"pointw"),
        ("(Tensor(a!) x, Tensor y) -> ()", "rows", r"not for an op that writes to .* \(`x`\)"),
    ],
)
def test_wrong_rules(unique: str, schema: str, sharding: Any, message: str) -> None:
    outputs = opaq.like("x") if schema.endswith("Tensor") else None
    with pytest.raises(opaq.DeclarationError, match=message):
        opaq.op(unique + schema, outputs=outputs, sharding=sharding)


def test_a_declaration_is_repeated_with_the_same_rule(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"), sharding="rows")
    op.reference(torch.sin)
    with pytest.raises(opaq.DeclarationError, match="declared with sharding='rows'; got None"):
        opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
