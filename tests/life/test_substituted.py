"""Patterns in packages, under DistributedDataParallel and under fully_shard (FSDP2)."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
import torch.nn.functional as F

import opaq
from opaq.lowering.substitute import apply

NAMES = ["rms_norm", "silu_mul"]


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(64, 256), torch.nn.Linear(128, 64)
        self.weight = torch.nn.Parameter(torch.ones(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        variance = x.pow(2).mean(-1, keepdim=True)
        gate, up = self.up(x * torch.rsqrt(variance + 1e-6) * self.weight).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


@pytest.mark.parametrize("sizes", [None, {"x": {0: torch.export.Dim("rows")}}])
def test_a_package(sizes: Any, tmp_path: Path) -> None:
    model, x = Layer(), torch.randn(4, 64)
    exported = torch.export.export(model, (x,), dynamic_shapes=sizes)
    before = str(exported.graph)
    with apply.collected() as found:
        path = opaq.package(exported, tmp_path / "model.pt2", substitute=NAMES)
    assert Counter(each.pattern for each in found if each.applied) == dict.fromkeys(NAMES, 1)
    assert str(exported.graph) == before, "the user's program is not changed"
    loaded = torch._inductor.aoti_load_package(path)
    torch.testing.assert_close(loaded(x), model(x))


DDP = f"""
import os, sys
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
import torch, torch.distributed as dist
from opaq.lowering.substitute import apply
from test_substituted import NAMES, Layer

os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
dist._DEFAULT_FIRST_BUCKET_BYTES = 50000
torch._dynamo.config.optimize_ddp = True
model, x = torch.nn.Sequential(*[Layer() for _ in range(4)]), torch.randn(4, 64)
parallel = torch.nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.1)


def gradients(call):
    model.zero_grad()
    call(x).sin().sum().backward()
    return [p.grad.clone() for p in model.parameters()]


with apply.collected() as found:
    compiled = torch.compile(parallel, backend="opaq", options={{"substitute": NAMES}})
    results = gradients(compiled)
assert found and all(each.applied for each in found), found
assert {{each.pattern for each in found}} == set(NAMES)
for result, expected in zip(results, gradients(model), strict=True):
    torch.testing.assert_close(result, expected)
dist.destroy_process_group()
"""


FSDP = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
import torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from opaq.lowering.substitute import apply
from test_substituted import NAMES, Layer

rank, store = int(sys.argv[1]), dist.FileStore(sys.argv[2], 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
torch.manual_seed(0)
model = torch.nn.Sequential(*[Layer() for _ in range(2)])
torch.manual_seed(0)
plain = torch.nn.Sequential(*[Layer() for _ in range(2)])
mesh = dist.init_device_mesh("cpu", (2,))
for layer in model:
    layer.compile(backend="opaq", options={{"substitute": NAMES}})
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
torch.manual_seed(1 + rank)
x = torch.randn(4, 64)
with apply.collected() as found:
    model(x).sin().sum().backward()
assert {{each.pattern for each in found if each.applied}} == set(NAMES), found
plain(x).sin().sum().backward()
for result, expected in zip(model.parameters(), plain.parameters(), strict=True):
    dist.all_reduce(expected.grad)
    torch.testing.assert_close(result.grad.full_tensor(), expected.grad / 2)
dist.destroy_process_group()
"""


def run(*processes: list[str]) -> None:
    """Runs them at the same time."""
    started = [
        forked.start(
            [sys.executable, "-c", *arguments],
            inductor=True,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for arguments in processes
    ]
    for process in started:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-3000:]


def test_distributed_data_parallel() -> None:
    run([DDP])


def test_fully_sharded(tmp_path: Path) -> None:
    run(*([FSDP, str(rank), str(tmp_path / "store")] for rank in range(2)))
