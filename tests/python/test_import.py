"""What importing opaq must not do, tested in fresh processes."""

from __future__ import annotations

import json
import subprocess
import sys

import forked


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_neither_inductor_nor_nvrtc_nor_the_driver() -> None:
    script = """
import sys, torch
modules, maps = set(sys.modules), open("/proc/self/maps").read()  # torch itself may link NVRTC
import opaq
new = set(sys.modules) - modules
loaded = [name for name in ("libnvrtc",
    "libcuda.so") if name in open("/proc/self/maps").read() and name not in maps]
print([name for name in new if name.startswith(("torch._inductor", "torch._dynamo", "triton",
    "rich", "transformers", "sympy"))], loaded, torch.cuda.is_initialized())
"""
    assert run(script).strip() == "[] [] False"


def test_declaring_and_calling_on_cpu_initialises_no_cuda() -> None:
    script = """
import torch, opaq
op = opaq.op("t::f(Tensor x) -> Tensor", outputs=opaq.like("x"))
op.cuda(source="__global__ void f(const float*, float*) {}", entry="f", args="x, out")
op.cpu(source="void f(const float* x, float* out) { out[0] = x[0]; }", entry="f", args="x, out")
op(torch.ones(1))
print(torch.cuda.is_initialized(), "torch._inductor.lowering" in __import__("sys").modules)
"""
    assert run(script).strip() == "False False"


def test_forked_workers_survive() -> None:
    script = """
import os, torch, opaq
op = opaq.op("t::f(Tensor x) -> Tensor", outputs=opaq.like("x"))
op.cpu(source="void f(const float* x, float* out) { out[0] = x[0] + 1; }", entry="f", args="x, out")
op(torch.ones(1))
child = os.fork()
if child == 0:
    os._exit(0 if op(torch.ones(1)).item() == 2 else 1)
print(os.waitpid(child, 0)[1])
"""
    assert run(script).strip() == "0"


def test_doctor_speaks_json() -> None:
    done = forked.run([sys.executable, "-m", "opaq", "doctor", "--json"])
    assert done.returncode == 0, done.stderr
    parts = {part["name"]: part for part in json.loads(done.stdout)["parts"]}
    assert parts["torch"]["found"] and parts["C++ compiler"]["found"]
    assert all(part["found"] or part["advice"] for part in parts.values())
