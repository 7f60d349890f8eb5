"""Digests of Python functions are the same for the same behaviour, also in another process, and
change with anything that affects a result.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from opaq import lowering

lowering.activate()
from opaq.lowering.function_digest import CannotDigest, digest  # noqa: E402  (needs Inductor's adapter)


def no_ops(name: str) -> Any:
    return []


def of(source: str, name: str = "f", **scope: Any) -> str:
    """The digest of what `source` defines as `name`."""
    space: dict[str, Any] = {"__name__": "user_program", "torch": torch, **scope}
    exec(compile(source, "<program>", "exec", dont_inherit=True), space)
    return digest(space[name], no_ops)


# The two sources of a pair differ in one thing that changes the result of f.
CHANGES = {
    "code": ("def f(g): return g * 2", "def f(g): return g * 3"),
    "default": ("def f(g, k=2): return g * k", "def f(g, k=3): return g * k"),
    "keyword default": ("def f(g, *, k=2): return g * k", "def f(g, *, k=3): return g * k"),
    "captured": (
        "def make(k):\n return lambda g: g * k\nf = make(2)",
        "def make(k):\n return lambda g: g * k\nf = make(3)",
    ),
    "global": ("K = 2\ndef f(g): return g * K", "K = 3\ndef f(g): return g * K"),
    "type of a global": ("K = 2\ndef f(g): return g * K", "K = 2.0\ndef f(g): return g * K"),
    "zero's sign": ("K = 0.0\ndef f(g): return g * K", "K = -0.0\ndef f(g): return g * K"),
    "helper": (
        "def h(g): return g\ndef f(g): return h(g)",
        "def h(g): return -g\ndef f(g): return h(g)",
    ),
    "helper of a helper": (
        "def i(g): return g\ndef h(g): return i(g)\ndef f(g): return h(g)",
        "def i(g): return -g\ndef h(g): return i(g)\ndef f(g): return h(g)",
    ),
    "global of a nested function": (
        "K = 2\ndef f(g):\n def inner(): return K\n return g * inner()",
        "K = 3\ndef f(g):\n def inner(): return K\n return g * inner()",
    ),
    "global in a comprehension": (
        "K = 2\ndef f(g): return [g * K for _ in 'a']",
        "K = 3\ndef f(g): return [g * K for _ in 'a']",
    ),
    "lambdas of one line": (
        "f, h = (lambda g: g), (lambda g: -g)",
        "h, f = (lambda g: g), (lambda g: -g)",
    ),
    "dict": (
        "K = {'a': [1, 2]}\ndef f(g): return g * K['a'][0]",
        "K = {'a': [1, 3]}\ndef f(g): return g * K['a'][0]",
    ),
    "set": ("K = {1, 'a'}\ndef f(g): return K", "K = {1, 'b'}\ndef f(g): return K"),
    "set of functions": (
        "K = {len, abs}\ndef f(g): return K",
        "K = {len, min}\ndef f(g): return K",
    ),
    "order of a dict": (
        "K = {'a': 1, 'b': 2}\ndef f(g): return list(K)",
        "K = {'b': 2, 'a': 1}\ndef f(g): return list(K)",
    ),
    "partial's argument": (
        "import functools\ndef h(k, g): return g * k\nf = functools.partial(h, 2)",
        "import functools\ndef h(k, g): return g * k\nf = functools.partial(h, 3)",
    ),
    "partial's keyword": (
        "import functools\ndef h(g, k): return g * k\nf = functools.partial(h, k=2)",
        "import functools\ndef h(g, k): return g * k\nf = functools.partial(h, k=3)",
    ),
    "bound method's object": (
        (
            "class C:\n def __init__(self, k): self.k = k\n def run(self, g): return g * self.k\nf "
            "= C(2).run"
        ),
        (
            "class C:\n def __init__(self, k): self.k = k\n def run(self, g): return g * self.k\nf "
            "= C(3).run"
        ),
    ),
    "callable object's state": (
        (
            "class C:\n def __init__(self, k): self.k = k\n def __call__(self, g): return g * "
            "self.k\nf = C(2)"
        ),
        (
            "class C:\n def __init__(self, k): self.k = k\n def __call__(self, g): return g * "
            "self.k\nf = C(3)"
        ),
    ),
    "callable object's slots": (
        (
            "class C:\n __slots__ = 'k'\n def __init__(self, k): self.k = k\n def __call__(self, "
            "g): return g * self.k\nf = C(2)"
        ),
        (
            "class C:\n __slots__ = 'k'\n def __init__(self, k): self.k = k\n def __call__(self, "
            "g): return g * self.k\nf = C(3)"
        ),
    ),
    "callable object's code": (
        "class C:\n def __call__(self, g): return g\nf = C()",
        "class C:\n def __call__(self, g): return -g\nf = C()",
    ),
    "base class": (
        "class B:\n def __call__(self, g): return g\nclass C(B): pass\nf = C()",
        "class B:\n def __call__(self, g): return -g\nclass C(B): pass\nf = C()",
    ),
    "class attribute": (
        "class C:\n k = 2\ndef f(g): return g * C.k",
        "class C:\n k = 3\ndef f(g): return g * C.k",
    ),
    "property": (
        "class C:\n @property\n def k(self): return 2\nc = C()\ndef f(g): return g * c.k",
        "class C:\n @property\n def k(self): return 3\nc = C()\ndef f(g): return g * c.k",
    ),
    "static method": (
        "class C:\n @staticmethod\n def h(g): return g\ndef f(g): return C.h(g)",
        "class C:\n @staticmethod\n def h(g): return -g\ndef f(g): return C.h(g)",
    ),
    "what is decorated": (
        (
            "import functools\ndef d(fn):\n @functools.wraps(fn)\n def w(*a): return fn(*a)\n "
            "return w\n@d\ndef f(g): return g"
        ),
        (
            "import functools\ndef d(fn):\n @functools.wraps(fn)\n def w(*a): return fn(*a)\n "
            "return w\n@d\ndef f(g): return -g"
        ),
    ),
    "decorator": (
        "def d(fn): return lambda *a: fn(*a)\n@d\ndef f(g): return g",
        "def d(fn): return lambda *a: -fn(*a)\n@d\ndef f(g): return g",
    ),
    "under torch.no_grad": (
        "@torch.no_grad()\ndef f(g): return g",
        "@torch.no_grad()\ndef f(g): return -g",
    ),
    "under lru_cache": (
        "import functools\n@functools.lru_cache\ndef h(): return 2\ndef f(g): return g * h()",
        "import functools\n@functools.lru_cache\ndef h(): return 3\ndef f(g): return g * h()",
    ),
    "attribute of a function": (
        "def f(g): return g * f.k\nf.k = 2",
        "def f(g): return g * f.k\nf.k = 3",
    ),
    "autograd function": (
        (
            "class F(torch.autograd.Function):\n @staticmethod\n def forward(ctx, g): return g * "
            "2\ndef f(g): return F.apply(g)"
        ),
        (
            "class F(torch.autograd.Function):\n @staticmethod\n def forward(ctx, g): return g * "
            "3\ndef f(g): return F.apply(g)"
        ),
    ),
    "captured tensor": (
        "K = torch.ones(2)\ndef f(g): return g * K",
        "K = torch.zeros(2)\ndef f(g): return g * K",
    ),
    "tensor's strides": (
        "K = torch.ones(2, 2)\ndef f(g): return g * K",
        "K = torch.ones(2, 2).t()[:, :]\nK = K.as_strided((2, 2), (1, 2))\ndef f(g): return g * K",
    ),
    "parameter of a module": (
        (
            "K = torch.nn.Linear(1, "
            "1)\ntorch.nn.init.ones_(K.weight)\ntorch.nn.init.ones_(K.bias)\ndef f(g): return "
            "K(g)"
        ),
        (
            "K = torch.nn.Linear(1, "
            "1)\ntorch.nn.init.zeros_(K.weight)\ntorch.nn.init.ones_(K.bias)\ndef f(g): return "
            "K(g)"
        ),
    ),
    "dtype": (
        "K = torch.float32\ndef f(g): return g.to(K)",
        "K = torch.float64\ndef f(g): return g.to(K)",
    ),
    "function of torch": ("def f(g): return torch.sin(g)", "def f(g): return torch.cos(g)"),
    "builtin": ("h = len\ndef f(g): return h(g)", "h = abs\ndef f(g): return h(g)"),
    "enum member": (
        "import enum\nclass E(enum.Enum):\n A = 1\n B = 2\nK = E.A\ndef f(g): return K",
        "import enum\nclass E(enum.Enum):\n A = 1\n B = 2\nK = E.B\ndef f(g): return K",
    ),
    "dataclass": (
        (
            "import dataclasses\n@dataclasses.dataclass\nclass D:\n k: int = 2\nK = D()\ndef f(g): "
            "return g * K.k"
        ),
        (
            "import dataclasses\n@dataclasses.dataclass\nclass D:\n k: int = 3\nK = D()\ndef f(g): "
            "return g * K.k"
        ),
    ),
    "named tuple": (
        (
            "import collections\nN = collections.namedtuple('N', 'k')\nK = N(2)\ndef f(g): return "
            "g * K.k"
        ),
        (
            "import collections\nN = collections.namedtuple('N', 'k')\nK = N(3)\ndef f(g): return "
            "g * K.k"
        ),
    ),
    "subclass of dict": (
        "class D(dict):\n def __missing__(self, k): return 2\nK = D()\ndef f(g): return g * K['x']",
        "class D(dict):\n def __missing__(self, k): return 3\nK = D()\ndef f(g): return g * K['x']",
    ),
    "object in C": (
        "import decimal\nK = decimal.Decimal(2)\ndef f(g): return g * float(K)",
        "import decimal\nK = decimal.Decimal(3)\ndef f(g): return g * float(K)",
    ),
    "pattern": (
        "import re\nK = re.compile('a')\ndef f(g): return K",
        "import re\nK = re.compile('b')\ndef f(g): return K",
    ),
    "array": (
        "import numpy\nK = numpy.ones(2)\ndef f(g): return K",
        "import numpy\nK = numpy.zeros(2)\ndef f(g): return K",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_changes_the_digest_and_nothing_else_does(kind: str) -> None:
    before, after = CHANGES[kind]
    assert of(before) == of(before), "the same program, another digest"
    assert of(before) != of(after)


def test_comments_and_places_do_not_count() -> None:
    assert of("def f(g): return g * 2") == of("# above\n\ndef f(g):\n    # why\n    return g * 2")


def test_a_global_that_is_not_named_does_not_count() -> None:
    assert of("K = 2\ndef f(g): return g.K") == of("K = 3\ndef f(g): return g.K")


@pytest.mark.parametrize(
    "use",
    [
        "return helpers.scale(g)",
        "h = helpers; return h.scale(g)",
        "import helpers as h; return h.scale(g)",
        "from helpers import scale; return scale(g)",
        "return getattr(helpers, 'scale')(g)",
        "return getattr(helpers, 'sca' + 'le')(g)",
        "return vars(helpers)['scale'](g)",
        "return call(helpers, g)",
        "return package.helpers.scale(g)",
        "return constants.table['scale'](g)",
    ],
)
def test_modules_of_the_user_count_by_what_is_looked_up_in_them(
    use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_helper(body: str) -> str:
        helpers = types.ModuleType("helpers")
        exec(f"def scale(g): return {body}", vars(helpers))
        monkeypatch.setitem(sys.modules, "helpers", helpers)
        package, constants = types.ModuleType("package"), types.ModuleType("constants")
        package.helpers, constants.table = helpers, {"scale": helpers.scale}
        scope = {"helpers": helpers, "package": package, "constants": constants}
        return of(f"def call(module, g): return module.scale(g)\ndef f(g): {use}", **scope)

    assert with_helper("g * 2") == with_helper("g * 2")
    assert with_helper("g * 2") != with_helper("g * 3")


@pytest.mark.parametrize(
    "source, names",
    [
        ("import threading\nK = threading.Lock()\ndef f(g):\n with K: return g", "lock"),
        ("K = open('/dev/null')\ndef f(g): return K.read()", "TextIOWrapper"),
        ("def f(g): return eval('g * 2')", "eval()"),
        ("def f(g): return globals()['h'](g)", "globals()"),
        ("def f(g):\n import not_imported_yet\n return not_imported_yet.h(g)", "not_imported_yet"),
        (
            "import importlib\ndef f(g): return importlib.import_module('a' + 'b').h(g)",
            "imports a module by a computed name",
        ),
        ("K = (i for i in [])\ndef f(g): return next(K)", "generator"),
        (
            "import contextvars\nK = contextvars.ContextVar('k')\ndef f(g): return K.get()",
            "ContextVar",
        ),
        ("K = torch.zeros(1 << 21)\ndef f(g): return g * K", "8388608 bytes"),
        ("def f(g): return getattr(torch.ops.mylib, str(g))(g)", "torch.ops"),
    ],
)
def test_what_cannot_be_told_is_said(source: str, names: str) -> None:
    with pytest.raises(CannotDigest, match=names.replace("(", r"\(").replace(")", r"\)")):
        of(source)


def test_cycles_end() -> None:
    source = "K = []\nK.append(K)\ndef f(g): return K, f, h\ndef h(g): return f(g)"
    assert of(source) == of(source)


def test_an_op_that_is_called_counts_by_its_parts() -> None:
    def with_parts(parts: Any) -> str:
        return digest(
            lambda g: torch.ops.aten.sin(g), lambda name: parts if name == "aten::sin" else []
        )

    assert with_parts(["a"]) == with_parts(["a"])
    assert with_parts(["a"]) != with_parts(["b"])


def test_the_locks_of_a_library_do_not_count() -> None:
    digest(
        lambda g: (threading.get_ident(), torch.nn.functional.silu(g), os.path.join("a", "b")),
        no_ops,
    )


PROGRAM = """
import dataclasses, enum, functools, math, re
import torch
from opaq import lowering
lowering.activate()
from opaq.lowering.function_digest import digest

class E(enum.IntEnum):
    A = 1

@dataclasses.dataclass(frozen=True)
class Settings:
    k: float = 2.0
    names: frozenset = frozenset({"a", "b", "c"})

class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.arange(3.0))
        self.settings = Settings()
    def forward(self, g):
        return torch.nn.functional.silu(g) * self.w * math.pi

scale, kinds = Scale(), {"x", "y", "z", 1, 2.0}

@functools.lru_cache(maxsize=None)
def helper(x):
    return x if x in {"p", "q", "r"} else re.sub("a", "b", x)

def formula(ctx, grad, *, k=E.A):
    return scale(grad), kinds, helper("p"), torch.ops.aten.sin.default(grad)

print(digest(functools.partial(formula, k=E.A), lambda name: [name]))
"""


def test_another_process_finds_the_same_digest(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    found = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, str(program)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1
