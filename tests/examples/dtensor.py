"""An opaque op on DTensors: each process computes the rows that it has. Here the mesh has one
process; with torchrun, the same file runs on several.

    python dtensor.py    or    torchrun --nproc-per-node 2 dtensor.py
"""

import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import opaq

scale_rows = opaq.op(
    "examples::scale_rows(Tensor x, Tensor weight) -> Tensor",
    outputs=opaq.like("x"),
    sharding="rows",
)
scale_rows.cpu(
    source="""
    void scale_rows(const float* x, const float* weight, float* out, long n, long width) {
      for (long i = 0; i < n; ++i) out[i] = x[i] * weight[i % width];
    }
    """,
    entry="scale_rows",
    args="x, weight, out, x.numel(), x.size(-1)",
    requires="weight.size(0) == x.size(-1)",
)

for variable, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1")):
    os.environ.setdefault(variable, value)
os.environ.setdefault("MASTER_PORT", "0" if os.environ["WORLD_SIZE"] == "1" else "29500")
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),))

torch.manual_seed(0)
whole, weight = torch.randn(8, 16), torch.randn(16)
x = distribute_tensor(whole, mesh, [Shard(0)])
w = distribute_tensor(weight, mesh, [Replicate()])
for function in (scale_rows, torch.compile(scale_rows)):
    result = function(x, w)
    assert result.placements == (Shard(0),)
    torch.testing.assert_close(result.full_tensor(), whole * weight)
print(f"rank {dist.get_rank()} of {dist.get_world_size()}: the shards agree with PyTorch")
dist.destroy_process_group()
