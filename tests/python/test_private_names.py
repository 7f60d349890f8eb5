"""Only lowering/compat uses private names of torch, Dynamo and Inductor, so that everything that a
new torch may break is in one folder.
"""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = ("lowering", "backend", "extern_kernels", "bench", "tests/examples")

# Private modules that are not torch's: ours, and those of Python.
OURS = {"opaq._runtime", "._runtime", "_runtime"}

# Strings that are parts of names of ours, or of environment variables.
ENDINGS = {"_backward", "_DIR", "_HOME", "_PATH"}

# (file, private name): why it may stand there.
EXEMPT = {
    ("backend/call_site.py", "sys._getframe"): "Python's own, documented",
    ("backend/rules.py", "sys._getframe"): "Python's own, documented",
    ("bench/wanted.py", "'_fields'"): "of named tuples, documented",
    ("lowering/function_digest.py", "'_abc_impl'"): "an attribute of Python's abstract classes",
    ("bench/boundary_kernel.py", "torch.cuda._compile_kernel"): "measured, as torch's counterpart",
    ("bench/boundary_peers.py", "'torch.cuda._compile_kernel'"): "the contestant's name",
    ("bench/boundary_ways.py", "torch._inductor"): "measured: AOTInductor without opaq",
    ("tests/examples/package.py", "torch._inductor"): "as PyTorch documents loading a package",
    ("bench/package.py", "torch._inductor.config"): "sets the stock options it measures under",
}


def private_names(source: str, folder: pathlib.Path | None = None) -> Iterator[tuple[int, str]]:
    """(line, name) of every private name in `source` that it does not define itself: of an imported
    module or name, an attribute, a keyword argument, or a string that is such a name or a path to
    it ("_schema", "torch._inductor"). folder: that of the file, where base classes are looked for.
    """
    tree = ast.parse(source)
    own = names_defined_in(tree)
    inherited = own | (names_of_bases(tree, folder) if folder else frozenset())
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
            of_self = ast.unparse(node.value) == "self"
            if node.attr not in (inherited if of_self else own - OF_TORCH):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.keyword) and is_private(node.arg or "") and node.arg not in own:
            yield node.value.lineno, f"{node.arg}="
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            path = re.fullmatch(r"\w+(\.\w+)*", node.value)
            own_name = node.value in own | OURS | ENDINGS
            if path and has_private_part(node.value) and not own_name:
                yield node.lineno, repr(node.value)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ACCESSORS:
            # getattr(x, "_" + name), getattr(x, f"_{name}")
            computed = [part for argument in node.args[1:2] for part in ast.walk(argument)]
            if any(isinstance(part, ast.Constant) and part.value == "_" for part in computed):
                yield node.lineno, ast.unparse(node)


ACCESSORS = {"getattr", "setattr", "hasattr", "delattr"}


def is_private(name: str) -> bool:
    return re.match(r"_[^_]", name) is not None


def has_private_part(name: str) -> bool:
    return any(map(is_private, name.split(".")))


def names_defined_in(tree: ast.Module) -> frozenset[str]:
    """The private names that a file gives to functions, classes, variables and attributes of
    `self`; any object may be of one of its classes.
    """
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if ast.unparse(node.value) == "self":
                found.add(node.attr)
    return frozenset(filter(is_private, found))


def names_of_bases(tree: ast.Module, folder: pathlib.Path) -> frozenset[str]:
    """The private names that files beside this one define from which it imports a base class."""
    bases = {
        base.id
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if isinstance(base, ast.Name)
    }
    return frozenset().union(
        *(
            names_defined_in(ast.parse((folder / f"{node.module}.py").read_text()))
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.level == 1
            if (folder / f"{node.module}.py").exists()
            if bases & {alias.name for alias in node.names}
        )
    )


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
        for line, private in private_names(path.read_text(), path.parent)
        if (name, private) not in EXEMPT
    ]
    assert len(files()) > 50
    assert not found, (
        "private names outside lowering/compat; give them a method of an adapter there:\n"
        + "\n".join(found)
    )


def test_no_private_names_in_cpp() -> None:
    """The runtime reads Python attributes by name; private names come from the adapter."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {name}"
        for path in sorted((ROOT / "runtime").rglob("*.cpp"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "Py" in line or "torch" in line
        for name in private_cpp_names(line)
    ]
    assert not found, "\n".join(found)


def private_cpp_names(line: str) -> list[str]:
    """String literals that hold a private name, or a path to one."""
    return re.findall(r'"(?!opaq\._runtime)(?:[\w.]*\.)?_[a-zA-Z][\w.]*[^"]*"', line)


@pytest.mark.parametrize(
    "line",
    [
        'PyObject_GetAttrString(value, "_base")',
        'PyImport_ImportModule("torch._C")',
        'check(PyUnicode_InternFromString("_current_level")).release();',
        'fail("torch.autograd.forward_ad._current_level is missing")',
    ],
)
def test_a_private_name_in_cpp_is_found(line: str) -> None:
    assert private_cpp_names(line)


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
        "x = importlib.import_module('torch._inductor')",
        "x = vars(tensor)['_base']",
        "x = operator.attrgetter('_base')(tensor)",
        "x = operator.attrgetter('storage._cdata')(tensor)",
        "x = getattr(tensor, '_' + name)",
        "x = getattr(tensor, f'_{name}')",
        "x = mock.patch('torch._inductor.config')",
        "x = op.namespace == '_c10d_functional'",
        "x = call(_keyset=keys)",
        "class Module(torch.nn.Module):\n    def count(self): return len(self._parameters)",
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
        "class Op:\n    def __init__(self): self._made = 1\nx = op._made",
        "_T = TypeVar('_T')",
        "x = value.__dict__",
        "x = 'torch.ops'",
    ],
)
def test_an_own_name_is_not(line: str) -> None:
    assert not list(private_names(line))
