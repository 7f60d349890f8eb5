"""Type checkers use opaq's types: runs mypy on two files as users write them, one right and one
with mistakes.
"""

from __future__ import annotations

import importlib.resources
import pathlib
import re
import subprocess
import sys

import pytest

import opaq

RIGHT = """
import torch
import opaq

scale = opaq.op(
    "typed::scale(Tensor x, float by=2.0) -> Tensor", outputs=opaq.like("x", dtype=torch.float32)
)
scale.cpu(source="...", entry="scale", args="x, by, out, x.numel()", requires=["x.dim() == 1"])
scale.cuda(source="...", entry="f", args=["x", "by", "out"], grid="x.numel()", block=(32, 1, 1))
scale.library("libk.so", symbol="f", args="x, out", device="cpu", signature="void(void*, void*)")


def fill(x: torch.Tensor, by: float, out: torch.Tensor) -> None:
    out.copy_(x * by)


scale.python(fill, device="cuda", requires="x.dim() == 1", priority=1)


@scale.reference
def _(x: torch.Tensor, by: float = 2.0) -> torch.Tensor:
    return x * by


@opaq.custom_op("typed::shift", mutates_args=())
def shift(x: torch.Tensor, by: float = 1.0) -> torch.Tensor:
    return x + by


@shift.register_fake
def _(x: torch.Tensor, by: float = 1.0) -> torch.Tensor:
    return torch.empty_like(x)


def minus_(x: torch.Tensor) -> torch.Tensor:
    return -x


minus = opaq.custom_op("typed::minus", minus_, mutates_args="unknown")
minus.register_autograd(lambda ctx, grad: -grad)
y: torch.Tensor = minus(shift(scale(torch.ones(3), by=3.0), by=2.0))
version: str = opaq.__version__
"""

WRONG = """
import opaq

scale = opaq.op("typed::scale(Tensor x) -> Tensor", output=opaq.like("x"))  # wrong: output
scale.cpu(sorce="...", entry="scale", args="x, out")  # wrong: sorce
scale.cuda(source="...", entry="scale", args="x, out", gird="1")  # wrong: gird
scale.cdua(source="...", entry="scale", args="x, out")  # wrong: cdua
scale.library("libk.so", symbl="f", args="x, out", device="cpu")  # wrong: symbl
scale.python(print, devcie="cpu")  # wrong: devcie
opaq.like("x", dtyp="float32")  # wrong: dtyp


@opaq.custom_op("typed::shift", mutate_args=())  # wrong: mutate_args
def misspelled(x: int) -> int:
    return x


@opaq.custom_op("typed::shift", mutates_args=())
def shift(x: int, by: float = 1.0) -> int:
    return x


shift(1, bye=2.0)  # wrong: bye
shift.register_autograd(None, setup_contxt=None)  # wrong: setup_contxt
text: str = shift(1)  # wrong: int
"""

# mypy does not read torch, which would take a minute and is not needed here.
CONFIGURATION = """
[mypy]
follow_imports = silent
[mypy-torch.*]
follow_imports = skip
"""


def test_mypy_finds_misspelled_names_and_nothing_in_a_right_file(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("mypy")
    for name, text in (("right.py", RIGHT), ("wrong.py", WRONG), ("mypy.ini", CONFIGURATION)):
        (tmp_path / name).write_text(text)
    show_to_mypy(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=mypy.ini", "right.py", "wrong.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    found: dict[int, str] = {}
    for file, line, message in re.findall(r"^(\w+\.py):(\d+): error: (.*)", done.stdout, re.M):
        assert file == "wrong.py", done.stdout
        found[int(line)] = found.get(int(line), "") + message
    expected = {
        number: line.partition("# wrong: ")[2]
        for number, line in enumerate(WRONG.splitlines(), 1)
        if "# wrong: " in line
    }
    assert found.keys() == expected.keys(), done.stdout + done.stderr
    assert all(f'"{expected[line]}"' in found[line] for line in expected), done.stdout


def show_to_mypy(folder: pathlib.Path) -> None:
    """An editable install works by import hooks, which mypy does not run: for it, this makes the
    package as links to its parts.
    """
    package = pathlib.Path(opaq.__file__).parent
    if package.name != "opaq":
        (folder / "opaq").mkdir()
        for part in (*package.iterdir(), *package.parent.glob("lowering")):
            (folder / "opaq" / part.name).symlink_to(part)


def test_the_package_says_that_it_is_typed() -> None:
    assert importlib.resources.files(opaq).joinpath("py.typed").is_file()
