"""Ways to run a model with opaque ops, for tests that try all of them."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import forked
import torch

import opaq

# The arguments of torch.compile, by name.
OPTIONS: dict[str, dict[str, Any]] = {
    "eager": {"backend": "eager"},
    "inductor": {},
    "opaq": {"backend": "opaq", "options": {"strict": True}},
    "cpp": {"options": {"cpp_wrapper": True}},
}


def run_package(model: torch.nn.Module, x: torch.Tensor, folder: pathlib.Path) -> Any:
    """What a package of the model gives for `x` in a process that has no opaq."""
    path = opaq.package(torch.export.export(model, (x,)), folder / "model.pt2")
    torch.save(x, folder / "x.pt")
    program = (
        "import sys, torch; x = torch.load(sys.argv[2]); "
        "run = torch._inductor.aoti_load_package(sys.argv[1]); torch.save(run(x), sys.argv[3]); "
        "assert 'opaq' not in sys.modules"
    )
    files = [str(path), str(folder / "x.pt"), str(folder / "y.pt")]
    forked.run([sys.executable, "-c", program, *files], check=True, inductor=True)
    return torch.load(files[2])
