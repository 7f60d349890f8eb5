"""Processes of torch.distributed use one measured choice, though each measures another to be the
fastest and has a store of its own; one that compiles alone waits for nobody.
"""

from __future__ import annotations

import pathlib

from test_sharding import run

PROGRAM = """
import os

rank = int(os.environ["RANK"])
os.environ["OPAQ_CACHE_DIR"] = os.environ["TUNING_CACHE"] + str(rank)
os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.environ["TUNING_CACHE"] + f"_inductor{rank}"
import torch
import torch.distributed as dist

import opaq
from opaq import _runtime, tuning

op = opaq.op("ranks::copy(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
for name in ("first", "zero", "one"):
    op.cpu(
        source="void f(const float* x, long n, float* y) {"
        "for (long i = 0; i < n; ++i) y[i] = x[i]; }",
        entry="f", args="x, x.numel(), y", name=f"cpu:{name}",
    )
mine = f"cpu:{('zero', 'one')[rank]}"
measured = []


def times(self, names):
    measured.append(1)
    return {name: [1.0 if name == mine else 9.0] * 12 for name in names}


tuning._Contest.times = times
opaq.tune(op, torch.ones(90))  # alone, before there are others: on its own disk
assert opaq.tune(op, torch.ones(90), search=False).fastest == mine
dist.init_process_group("gloo")


def on_all(value):
    found = [None, None]
    dist.all_gather_object(found, value)
    return found


def served(size, tune):
    x = torch.ones(size)
    seen = {node["graph"] for node in _runtime.node_stats()}
    model = torch.compile(lambda x: op(x) + 1, backend="opaq", dynamic=False,
                          options={"tune": tune})
    assert torch.equal(model(x), x + 1)
    (node,) = [node for node in _runtime.node_stats() if node["graph"] not in seen]
    return node["implementation"], model


def eager(x):
    (line,) = [line for line in op.explain(x).splitlines() if ": chosen" in line]
    return line.partition(": chosen")[0]


for again in (False, True):
    first, second = on_all(opaq.tune(op, torch.ones(50), again=again).fastest)
    assert first == second == eager(torch.ones(50)), (first, second)
first, second = on_all(served(60, "search")[0])
assert first == second != "cpu:first", (first, second)

# What only one of them had on disk is agreed upon, too.
first, second = on_all(served(90, "stored")[0])
assert first == second != "cpu:first", (first, second)

# Only one compiles; the other comes later, and measures nothing.
if rank == 1:
    alone, _ = served(70, "search")
    assert alone == mine
dist.barrier()
measured.clear()
if rank == 0:
    later, _ = served(70, "search")
    assert later == "cpu:one" and not measured
dist.barrier()
if rank == 0:
    print("agree")
dist.destroy_process_group()
"""


def test_two_processes(tmp_path: pathlib.Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    run(program, 2, TUNING_CACHE=str(tmp_path / "rank"))
