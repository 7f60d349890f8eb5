"""Only lowering/compat names what is private to torch, Dynamo or Inductor, so that one folder shows
what a new torch may break.
"""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = ("lowering", "backend", "extern_kernels", "bench")

# Private modules that are not torch's: ours, and those of Python.
OURS = {"opaq._runtime", "._runtime", "_runtime"}

# (file, private name): why it may stand there.
EXEMPT = {
    ("backend/call_site.py", "sys._getframe"): "Python's own, documented",
    ("backend/rules.py", "sys._getframe"): "Python's own, documented",
    ("bench/boundary.py", "torch.cuda._compile_kernel"): "measured, as torch's counterpart",
    ("bench/boundary.py", "torch._inductor"): "measured: AOTInductor without opaq",
    ("bench/package.py", "torch._inductor.config"): "sets the stock options it measures under",
}


def private_names(source: str, ours: frozenset[str] = frozenset()) -> Iterator[tuple[int, str]]:
    """(line, name) of every private name of something that `source` does not define itself: an
    imported module or name, an attribute, a name handed to getattr, the name of a private module of
    torch as a string. `ours`: private names that may be taken from other objects than self.
    """
    tree = ast.parse(source)
    ours |= defined_by_classes(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if has_private_part(alias.name) and alias.name not in OURS:
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                name = f"{module}{'' if module.endswith('.') else '.'}{alias.name}"
                known = name in OURS or module in OURS
                if has_private_part(name) and not known:
                    yield node.lineno, name
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            if not is_own(node.value) and node.attr not in ours:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ACCESSORS:
            for argument in node.args[1:2]:
                text = argument.value if isinstance(argument, ast.Constant) else None
                if isinstance(text, str) and has_private_part(text) and text not in ours:
                    yield node.lineno, f"{ast.unparse(node.func)}(..., {text!r})"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"torch(\.\w+)+", node.value) and has_private_part(node.value):
                yield node.lineno, repr(node.value)


ACCESSORS = {"getattr", "setattr", "hasattr", "delattr", "operator.attrgetter"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def has_private_part(name: str) -> bool:
    return any(map(is_private, name.split(".")))


def is_own(value: ast.expr) -> bool:
    """Whether an attribute is taken from self, cls, or super()."""
    return ast.unparse(value) in ("self", "cls", "super()")


def defined_by_classes(tree: ast.Module) -> frozenset[str]:
    """The private methods and attributes of the classes in a file: any object may be one of
    theirs.
    """
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            found |= {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
            found |= {
                inner.attr
                for inner in ast.walk(node)
                if isinstance(inner, ast.Attribute) and ast.unparse(inner.value) == "self"
            }
    return frozenset(filter(is_private, found)) - OF_TORCH


# What torch's objects hold under these names is torch's, even where a class of ours has such a
# name too.
OF_TORCH = {"_schema", "_opname", "_base", "_is_view", "_cdata", "_name", "_lines", "_version"}


def files() -> list[pathlib.Path]:
    return [
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (ROOT / "lowering" / "compat") not in path.parents
    ]


def test_no_private_names_outside_compat() -> None:
    found = [
        f"{name}:{line}: {private}"
        for path in files()
        for name in [str(path.relative_to(ROOT))]
        for line, private in private_names(path.read_text())
        if (name, private) not in EXEMPT
    ]
    assert len(files()) > 50
    assert not found, (
        "private names outside lowering/compat; give them a method of an adapter there:\n"
        + "\n".join(found)
    )


def test_every_exemption_is_used() -> None:
    used = {
        (name, private)
        for name in {name for name, _ in EXEMPT}
        for _, private in private_names((ROOT / name).read_text())
    }
    assert used >= EXEMPT.keys()


@pytest.mark.parametrize(
    "line",
    [
        "import torch._inductor",
        "import torch._inductor.config as config",
        "from torch import _inductor",
        "from torch._inductor import config",
        "from torch._inductor.virtualized import V",
        "from torch.fx.passes.reinplace import _is_view_op",
        "x = torch._inductor.config",
        "x = isinstance(op, torch._ops.OpOverload)",
        "x = overload._schema",
        "x = node.target._schema.arguments",
        "x = tensor.untyped_storage()._cdata",
        "x = wrapper.header._lines",
        "layout._stride = ()",
        "x = getattr(overload, '_schema')",
        "x = getattr(torch, '_inductor', None)",
        "x = 'torch._dynamo' in sys.modules",
        "class Op:\n    def __init__(self): self._schema = 1\nx = overload._schema",
    ],
)
def test_a_private_name_is_found(line: str) -> None:
    assert list(private_names(line))


@pytest.mark.parametrize(
    "line",
    [
        "from opaq import _runtime",
        "from . import _runtime",
        "from ._runtime import LaunchError",
        "x = _runtime.describe",
        "class Op:\n    def _changed(self): other._changed()",
        "x = self._schema",
        "x = value.__dict__",
        "x = 'torch.ops'",
    ],
)
def test_an_own_name_is_not(line: str) -> None:
    assert not list(private_names(line))
